"""The choice among equivalent forms, with timings that are given."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.blocks import FORMS, CPDBlock
from norton_plugin.deploy import LatencyRatio, forms, select_forms_
from norton_plugin.errors import SurgeryError


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(CPDBlock(3, 8, 3, 2, padding=1), nn.ReLU(), CPDBlock(8, 4, 3, 1, stride=2))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch):
    """Replaces the stopwatch: the next block gets the next row of seconds."""

    def use(*rows: tuple[float, ...]) -> list[list[Tensor]]:
        outputs: list[list[Tensor]] = []
        supply = itertools.cycle(rows)

        def compare(calls, *, rounds, warmup):
            assert rounds == 5 and warmup == 1
            outputs.append([call() for call in calls])
            seconds = next(supply)
            return LatencyRatio(seconds, tuple(seconds[0] / s for s in seconds), rounds)

        monkeypatch.setattr(forms, "compare_latency", compare)
        return outputs

    return use


def test_the_fastest_form_of_each_block_is_kept(net, image, timed):
    outputs = timed((0.004, 0.003, 0.001, 0.002), (0.002, 0.003, 0.005, 0.001))
    with torch.no_grad():
        expected = net.eval()(image)
    chosen = select_forms_(net, image)
    assert FORMS == ("separable", "grouped", "depthwise", "dense")
    assert [(c.name, c.form) for c in chosen] == [("0", "depthwise"), ("2", "dense")]
    assert (net[0].form, net[2].form) == ("depthwise", "dense")
    assert chosen[0].milliseconds == pytest.approx({"separable": 4, "grouped": 3, "depthwise": 1, "dense": 2})
    torch.testing.assert_close(net(image), expected)
    # What was timed is the block in each of its forms, on the input it gets in the model.
    for row in outputs:
        assert len(row) == 4
        for output in row[1:]:
            torch.testing.assert_close(output, row[0])
    torch.testing.assert_close(outputs[1][0], expected)


def test_ties_keep_the_first_form_and_the_state_dict_stays(net, image, timed):
    timed((0.001,) * 4)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net[2].form = "dense"
    select_forms_(net, image)
    assert (net[0].form, net[2].form) == ("separable", "separable")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_flags_hooks_and_training_forms_stay(net, image, timed):
    timed((0.002, 0.001, 0.003, 0.004))
    net.train()
    net[2].eval()
    select_forms_(net, image)
    assert [m.training for m in net.modules()] == [True, True, True, False]
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert net[0].training_form == "dense" and net[0].form == "grouped"


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
def test_ways_to_give_an_example(net, image, timed, wrap):
    timed((0.002, 0.001, 0.003, 0.004))
    assert len(select_forms_(net, wrap(image))) == 2


def test_the_largest_input_of_a_shared_block_counts(timed):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = CPDBlock(3, 3, 3, 1, padding=1)
            self.unused = CPDBlock(3, 3, 3, 1)

        def forward(self, x):
            return [self.block(x[..., ::2, ::2]), self.block(x), self.block(x[..., :2, :2])]

    outputs = timed((0.002, 0.001, 0.003, 0.004))
    net = Pyramid()
    chosen = select_forms_(net, torch.randn(1, 3, 8, 8))
    assert [c.name for c in chosen] == ["block"] and outputs[0][0].shape == (1, 3, 8, 8)
    assert net.unused.form == "auto"


def test_a_model_without_blocks_has_nothing_to_choose():
    assert select_forms_(nn.Sequential(nn.Conv2d(3, 3, 3)), torch.zeros(1, 3, 8, 8)) == ()


def test_a_model_is_run_as_it_is_told(net, image, timed):
    timed((0.002, 0.001, 0.003, 0.004))
    assert len(select_forms_(net, {"any": [image]}, forward_fn=lambda model, given: model(given["any"][0]))) == 2


def test_a_wrong_example_is_refused(net):
    with pytest.raises(SurgeryError, match="does not run on the example inputs .* give an example"):
        select_forms_(net.train(), torch.zeros(1, 5, 9, 9))
    assert net.training and not any(m._forward_pre_hooks for m in net.modules())


def test_an_interruption_leaves_the_forms_as_they_were(net, image, monkeypatch):
    net[0].form = "grouped"

    def interrupted(calls, **_):
        calls[2]()
        raise KeyboardInterrupt

    monkeypatch.setattr(forms, "compare_latency", interrupted)
    with pytest.raises(KeyboardInterrupt):
        select_forms_(net, image)
    assert (net[0].form, net[2].form) == ("grouped", "auto")
