"""Moments against those of unfolded inputs, computed by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton_plugin.calibration import memory
from norton_plugin.calibration.moments import MomentSums
from norton_plugin.calibration.patches import PatchGeometry
from norton_plugin.errors import SurgeryError

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "padding": (1, 0), "stride": (2, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2, "bias": False},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 1, "stride": 2},
]


def geometry_of(conv: nn.Conv2d) -> PatchGeometry:
    return PatchGeometry(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("settings", CONVOLUTIONS)
def test_patches_give_the_outputs_of_the_convolution(settings):
    conv = nn.Conv2d(4, 6, **settings)
    x = torch.randn(3, 4, 9, 8, generator=seeded())
    output = conv(x).detach()
    geometry, chosen = geometry_of(conv), torch.tensor([0, 3, 7, 11])
    patches = geometry.patches(x, (output.shape[2], output.shape[3]), chosen)
    weight = conv.weight.detach().flatten(1).view(conv.groups, -1, patches.shape[2])
    rows = torch.einsum("mgd,gnd->mgn", patches, weight).flatten(1)
    rows = rows if conv.bias is None else rows + conv.bias.detach()
    torch.testing.assert_close(rows, geometry.targets(output, chosen), rtol=1e-5, atol=1e-5)


def test_the_sums_are_the_moments_of_all_patches():
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x, target = torch.randn(5, 4, 6, 6, generator=seeded(1)) + 1, torch.randn(5, 6, 6, 6, generator=seeded(2)) + 2
    sums = MomentSums("conv", geometry_of(conv), positions=36)
    for part in (slice(0, 2), slice(2, 5)):
        sums.add(x[part], target[part], seeded())
    rows = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    values = target.flatten(2).transpose(1, 2).flatten(0, 1).double()
    raw, centred = sums.result(centred=False), sums.result(centred=True)
    assert raw.samples == len(rows) == 180
    torch.testing.assert_close(raw.metric.second[0], rows.T @ rows / 180, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw.metric.cross, values.T @ rows / 180, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(centred.metric.second[0], rows.T.cov(correction=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(centred.metric.energy, values.var(0, correction=0), rtol=1e-5, atol=1e-5)
    # With the best weight and its bias, the error is that of least squares with an intercept.
    weight = centred.metric.best_weight()
    residual = values - rows @ weight.T - centred.bias(weight)
    torch.testing.assert_close(residual.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(centred.metric.errors(weight), residual.square().mean(0), rtol=1e-4, atol=1e-6)


def test_large_means_hide_no_small_variance():
    x = 1e4 + torch.randn(50, 3, generator=seeded(), dtype=torch.float64)
    target = -1e5 + torch.randn(50, 2, generator=seeded(1), dtype=torch.float64)
    sums = MomentSums("linear", PatchGeometry(channels_last=True), positions=1)
    for part in (slice(0, 10), slice(10, 50)):
        sums.add(x[part], target[part], seeded())
    found = sums.result(centred=True)
    torch.testing.assert_close(found.metric.second[0], x.T.cov(correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.metric.energy, target.var(0, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.input_mean[0], x.mean(0))
    raw = sums.result(centred=False)
    torch.testing.assert_close(raw.metric.cross, target.T @ x / 50, rtol=1e-9, atol=0)


def test_a_linear_layer_is_read_row_by_row():
    linear = nn.Linear(5, 3)
    x = torch.randn(4, 7, 5, generator=seeded())
    sums = MomentSums("linear", PatchGeometry(channels_last=True), positions=7)
    sums.add(x, linear(x).detach(), seeded())
    found = sums.result(centred=True)
    assert found.samples == 28
    torch.testing.assert_close(found.metric.best_weight(), linear.weight.detach().double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found.bias(found.metric.best_weight()), linear.bias.detach().double(), rtol=1e-4, atol=1e-4
    )
    flat = MomentSums("linear", PatchGeometry(channels_last=True), positions=7)
    flat.add(x.flatten(0, 1), linear(x).detach().flatten(0, 1), seeded())
    torch.testing.assert_close(flat.result(centred=True).metric.second, found.metric.second)


def test_the_seed_decides_and_parts_of_a_batch_change_nothing(monkeypatch):
    conv = nn.Conv2d(4, 6, 3)
    x = torch.randn(6, 4, 12, 12, generator=seeded())
    target = conv(x).detach()

    def second(seed: int) -> torch.Tensor:
        sums = MomentSums("conv", geometry_of(conv), positions=5)
        sums.add(x, target, seeded(seed))
        assert sums.samples == 30
        return sums.result(centred=False).metric.second

    before = second(0)
    assert torch.equal(before, second(0)) and not torch.allclose(before, second(1))
    state = torch.get_rng_state()
    monkeypatch.setattr(memory, "USUAL_PART", 1)  # one image at a time
    torch.testing.assert_close(before, second(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_not_finite_is_named_and_empty_batches_add_nothing():
    sums = MomentSums("layer3.conv2", PatchGeometry((1, 1)), positions=4)
    sums.add(torch.zeros(0, 4, 3, 3), torch.zeros(0, 6, 3, 3), seeded())
    with pytest.raises(SurgeryError, match=r"no calibration image reaches layer3\.conv2"):
        sums.result(centred=True)
    x = torch.ones(2, 4, 3, 3)
    x[1, 2] = torch.nan
    with pytest.raises(SurgeryError, match=r"layer3\.conv2 reads .* not finite"):
        sums.add(x, torch.ones(2, 6, 3, 3), seeded())
    pixel = torch.ones(1, 4, 9, 9)
    pixel[0, 0, 4, 4] = torch.nan
    with pytest.raises(SurgeryError, match="one reads or gives"):
        MomentSums("one", PatchGeometry((1, 1)), positions=1).add(pixel, torch.ones(1, 6, 9, 9), seeded())
