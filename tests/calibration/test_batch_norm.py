"""BatchNorm re-estimation against the statistics computed by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.errors import SurgeryError


def run(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch)


@pytest.fixture
def net() -> nn.Sequential:
    """Conv, norm, dropout, conv, norm: with statistics that are not those of any image."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    )
    for norm in (model[1], model[4]):
        norm.running_mean.fill_(7.0)
        norm.running_var.fill_(9.0)
        norm.num_batches_tracked.fill_(11)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_one_batch_gives_the_mean_and_the_unbiased_variance(net, images):
    assert reestimate_batch_norm_(net, [images], call=run) == 6
    with torch.no_grad():
        first = net[0](images)
        # The second norm sees the first one with statistics of this very batch (biased variance), no dropout.
        centred = first - first.mean((0, 2, 3), keepdim=True)
        scale = (first.var((0, 2, 3), unbiased=False, keepdim=True) + net[1].eps).rsqrt()
        second = net[3](centred * scale)
    for norm, maps in ((net[1], first), (net[4], second)):
        torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, maps.transpose(0, 1).flatten(1).var(1))


def test_batches_are_averaged_with_equal_weight(net, images):
    assert reestimate_batch_norm_(net, [images[:4], images[4:]], call=run) == 6
    maps = [net[0](part).detach().transpose(0, 1).flatten(1) for part in (images[:4], images[4:])]
    torch.testing.assert_close(net[1].running_mean, sum(m.mean(1) for m in maps) / 2)
    torch.testing.assert_close(net[1].running_var, sum(m.var(1) for m in maps) / 2)


def test_no_more_images_than_asked_for(net, images):
    taken = []

    def batches():
        for start in range(0, 6, 2):
            taken.append(start)
            yield images[start : start + 2]

    assert reestimate_batch_norm_(net, batches(), call=run, images=3) == 4
    assert taken == [0, 2]
    reference = copy.deepcopy(net)
    reestimate_batch_norm_(reference, [images[:2], images[2:4]], call=run)
    assert torch.equal(net[1].running_mean, reference[1].running_mean)


@pytest.mark.parametrize("training", [False, True])
def test_flags_momentum_parameters_and_counters_stay(net, images, training):
    net.train(training)
    net[1].eval()  # norm_eval
    before = {name: p.clone() for name, p in net.named_parameters()}
    modes = [m.training for m in net.modules()]
    reestimate_batch_norm_(net, [images], call=run)
    assert [m.training for m in net.modules()] == modes
    assert (net[1].momentum, net[4].momentum) == (0.3, 0.1)
    assert int(net[1].num_batches_tracked) == int(net[4].num_batches_tracked) == 11
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert (net[1].running_mean != 7).all() and (net[4].running_mean != 7).all()


def test_the_other_modules_run_in_evaluation_mode(images):
    class Activated(nn.BatchNorm2d):
        """Like timm's norms, which hold their activation and dropout."""

        def __init__(self):
            super().__init__(4)
            self.drop = nn.Dropout(0.9)

        def forward(self, x):
            return self.drop(super().forward(x))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Activated(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).train()
    reestimate_batch_norm_(model, [images], call=run)
    assert model[1].drop.training
    with torch.no_grad():
        first = model[0](images)
        normed = nn.functional.batch_norm(first, None, None, training=True)
        torch.testing.assert_close(model[3].running_mean, model[2](normed).mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_layers_that_no_image_reaches_keep_their_statistics(net, images):
    auxiliary = nn.BatchNorm2d(3)
    auxiliary.running_mean.fill_(2.0)
    auxiliary.num_batches_tracked.fill_(5)
    model = nn.ModuleDict({"main": net, "auxiliary": auxiliary})
    reestimate_batch_norm_(model, [images], call=lambda m, x: m["main"](x))
    assert auxiliary.running_mean.tolist() == [2.0] * 3 and auxiliary.running_var.tolist() == [1.0] * 3
    assert int(auxiliary.num_batches_tracked) == 5 and auxiliary.momentum == 0.1
    assert (net[1].running_mean != 7).all()


def test_without_running_statistics_there_is_nothing_to_do(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4))

    def never(*_):
        raise AssertionError("the model is not run")

    assert reestimate_batch_norm_(model, [images], call=never) == 0


def _interrupted(images: Tensor):
    yield images
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (lambda x: [], SurgeryError, "holds no batch"),
        (lambda x: [x, x[:, :2]], SurgeryError, "does not run on a calibration batch"),
        (lambda x: [x, x * float("inf")], SurgeryError, "not finite"),
        (_interrupted, KeyboardInterrupt, None),
    ],
)
def test_a_failure_leaves_everything_as_it_was(net, images, batches, error, message):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=message):
        reestimate_batch_norm_(net, batches(images), call=run)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m.training for m in net.modules()) and net[1].momentum == 0.3


@pytest.mark.parametrize(
    ("wrap", "count"),
    [
        (lambda x: x, 6),
        (lambda x: (x,), 6),
        (lambda x: {"pixels": x}, 6),
        (lambda x: {"inputs": list(x)}, 6),
        (lambda x: list(x), 6),
    ],
)
def test_images_are_counted_in_any_shape_of_batch(net, images, wrap, count):
    def call(model, batch):
        inner = next(iter(batch.values())) if isinstance(batch, dict) else batch
        inner = inner[0] if isinstance(inner, tuple) else inner
        return model(torch.stack(inner) if isinstance(inner, list) else inner)

    assert reestimate_batch_norm_(net, [wrap(images)], call=call) == count
