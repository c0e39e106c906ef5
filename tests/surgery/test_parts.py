"""Models that cannot be traced as a whole: their parts are pruned within fixed borders."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from norton_plugin import Recipe, compress
from norton_plugin.errors import TracingError
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.parts import Part, run_parts, traceable_parts
from norton_plugin.surgery.report import WHOLE

HALF = Pruning(keep=0.5, round_to=1)


def refuse_to_be_watched():
    """Stands for code that breaks under a trace."""
    if type(_get_current_dispatch_mode()).__name__ == "Tracer":
        raise TypeError("this code runs by itself alone")


def stage(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 3, padding=1)
    )


class Interrupted(nn.Module):
    """Two stages, and between them a step that cannot be traced."""

    def __init__(self, reuse: bool = False):
        super().__init__()
        self.trunk = nn.ModuleDict({"left": stage(3), "right": stage(8)})
        self.reuse = reuse

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk["left"](x)
        if self.reuse:
            y = y + self.trunk["left"][0](x)[:, :8] + self.trunk["left"][0](x)[:, 8:]
        refuse_to_be_watched()
        return self.trunk["right"](2 * y)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Interrupted().eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_parts_around_an_untraceable_step_are_pruned_and_verified(net, image):
    report = prune_(net, image, HALF)
    assert [(g.root, g.after) for g in report.groups] == [("trunk.left.0", 8), ("trunk.right.0", 8)]
    assert all(g.error < 1e-6 for g in report.groups)
    assert net.trunk["left"][1].num_features == 8 and net.trunk["left"][3].out_channels == 8
    reasons = {s.name: s.code for s in report.skipped}
    assert reasons[WHOLE] == "untraceable" and reasons["trunk.left.3"] == "model-output"
    with torch.no_grad():
        assert net(image).shape == (2, 8, 8, 8)


def test_the_parts_compute_what_the_masked_parts_do(net, image):
    """Against a mask made by hand: the rows of the removed filters set to zero."""
    dense = {name: p.detach().clone() for name, p in net.named_parameters()}
    prune_(net, image, Pruning(keeps={"trunk.left.0": 0.5}, round_to=1))
    kept = net.trunk["left"][0].weight
    rows = [next(i for i in range(16) if torch.equal(dense["trunk.left.0.weight"][i], row)) for row in kept]
    mask = torch.zeros(1, 16, 1, 1)
    mask[:, rows] = 1
    reference = Interrupted().eval()
    reference.load_state_dict(dense, strict=False)
    left = reference.trunk["left"]
    with torch.no_grad():
        masked = left[3](left[2](left[1](left[0](image))) * mask)
        assert torch.allclose(net.trunk["left"](image), masked, atol=1e-5)


def test_a_part_that_is_also_used_around_the_trace_is_rolled_back(image):
    net = Interrupted(reuse=True).eval()
    before = dict(net.named_parameters())
    report = prune_(net, image, HALF, require=False)
    assert report.groups == ()
    assert all(p is before[name] for name, p in net.named_parameters())
    assert any(s.code == "breaks-around" for s in report.skipped)


def test_status_is_partial(net, image):
    _, report = compress(net, image, Recipe(pruning=HALF))
    assert report.status == "partial" and report.to_dict()["status"] == "partial"


def test_no_part_at_all(image):
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            refuse_to_be_watched()
            return self.conv(x)

    with pytest.raises(TracingError, match="cannot be traced"):
        prune_(Opaque().eval(), image, HALF)
    report = prune_(Opaque().eval(), image, HALF, require=False)
    assert [s.name for s in report.skipped] == [WHOLE, "conv"]


def test_no_time_left(net, image):
    parts, failed = traceable_parts(net, image, None, time_limit=0.0)
    assert parts == [] and [s.name for s in failed] == ["trunk"]


def test_inputs_of_a_part_that_works_in_place_stay():
    net = nn.Sequential(nn.ReLU(inplace=True))
    part = Part("0", ((-torch.ones(3),), {}))
    assert torch.equal(run_parts(net, [part])[0], torch.zeros(3))
    assert torch.equal(part.inputs[0][0], -torch.ones(3))
