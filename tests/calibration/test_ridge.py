"""How strongly a layer is held to its dense weight."""

import pytest
import torch

from norton_plugin import Recipe, compress
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.calibration.halved_moments import HalvedSums
from norton_plugin.calibration.patches import PatchGeometry
from norton_plugin.calibration.ridge import RIDGE, _some_outputs, ridge_of
from norton_plugin.modules.running import run_model
from norton_plugin.recipe import Budget, Calibration, Decomposition
from norton_plugin.zoo import load_source

INPUTS, IMAGES = 12, 8


def _sums(alike: float, *, noise: float = 1.0, batches: int = IMAGES, seed: int = 0):
    """Sums of a Linear layer over images of 64 tokens each, which are ``alike`` within an image, and its weight."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, INPUTS, generator=generator, dtype=torch.float64)
    sums = HalvedSums("layer", PatchGeometry(channels_last=True), positions=64)
    for batch in range(batches):
        own = torch.randn(1, 1, INPUTS, generator=generator)
        x = alike * own + (1 - alike) * torch.randn(1, 64, INPUTS, generator=generator)
        error = torch.randn(1, 1, 6, generator=generator) * noise  # one for all tokens of an image
        sums.add(batch, x, x @ weight.float().T + error, torch.Generator())
    return weight, sums


def _ridge(weight, sums):
    return ridge_of(weight, sums.whole(centred=True), sums.halves(centred=True))


def test_the_ridge_stays_where_samples_tell_enough():
    weight, sums = _sums(0.0, noise=0.1)
    assert _ridge(2 * weight, sums) == RIDGE  # what fits is half of the dense weight


def test_the_ridge_grows_where_samples_of_an_image_are_alike():
    """512 samples look like plenty for 12 inputs, but only 8 of them differ."""
    weight, sums = _sums(0.99)
    ridge = _ridge(weight, sums)
    assert ridge >= 10 * RIDGE
    others = _sums(0.99, seed=0, batches=200)[1].whole(centred=True).metric
    metric = sums.whole(centred=True).metric
    held, free = (float(others.errors(metric.towards(weight, share).best_weight()).sum()) for share in (ridge, RIDGE))
    assert held < 0.9 * free


def test_a_single_batch_is_not_tried_on_another():
    weight, sums = _sums(0.99, batches=1)
    assert _ridge(weight, sums) == pytest.approx(RIDGE * 10 * INPUTS / 64)  # 64 samples are few for 12 inputs


@pytest.mark.parametrize(("count", "groups", "expected"), [(6, 1, 6), (6, 3, 6), (1000, 1, 64), (1000, 4, 64)])
def test_some_outputs_of_every_group_tell_the_ridge(count, groups, expected):
    chosen = _some_outputs(count, groups=groups)
    assert len(chosen) == expected
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert torch.bincount(chosen // (count // groups)).tolist() == [expected // groups] * groups


def test_halves_add_up_to_the_moments_of_all():
    _, sums = _sums(0.5)
    whole, halves = sums.whole(centred=False), sums.halves(centred=False)
    assert sums.samples == whole.samples == sum(half.samples for half in halves) == 64 * IMAGES
    assert torch.allclose(whole.metric.second, (halves[0].metric.second + halves[1].metric.second) / 2)
    assert not torch.allclose(halves[0].metric.second, halves[1].metric.second)


def test_a_fit_to_a_few_images_also_helps_on_others():
    """28 images, of which gates after a global pool see one position each: what fits them alone hurts others."""
    source = load_source("timm:test_efficientnet", input_size=64)
    torch.manual_seed(0)
    for parameter in source.model.parameters():
        if parameter.dim() == 1:  # fresh norms are constant
            parameter.data += 0.1 * torch.randn_like(parameter)
    batches = [(torch.rand(4, 3, 64, 64),) for _ in range(8)]
    reestimate_batch_norm_(source.model, batches, call=run_model)
    recipe = Recipe(
        decomposition=Decomposition(level="layer", linear=True, restarts=1, sweeps=20),
        budget=Budget(macs=0.5),
        calibration=Calibration(fit=True),
    )
    _, report = compress(source.model, source.example_inputs, recipe, calibration=batches)
    found = report.calibration.divergence
    assert found["fitted"] < found["plain"]
