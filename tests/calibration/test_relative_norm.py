"""Correction of norms against the dense model: what scales and shifts did is undone exactly."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.calibration.relative_norm import correct_batch_norm_
from tests.networks import settle


def call(model, batch):
    return model(batch)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
        )
    )


@pytest.fixture
def batches() -> list[torch.Tensor]:
    return list(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(4))


def scaled(model: nn.Module) -> nn.Module:
    """Convolutions with every channel scaled and shifted."""
    own = copy.deepcopy(model)
    for conv, low in ((own[0], 0.5), (own[3], 0.7)):
        factor = torch.linspace(low, 2, len(conv.weight))
        conv.weight.data.mul_(factor.view(-1, 1, 1, 1))
        conv.bias.data.mul_(factor).add_(3.0)
    return own


def test_scales_and_shifts_are_undone(model, batches):
    own = scaled(model)
    statistics = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected, before = model(batches[0]), own(batches[0])
        assert not torch.allclose(before, expected, atol=0.5)
        assert correct_batch_norm_(model, own, batches, example_inputs=batches[0], call=call) == 2
        torch.testing.assert_close(own(batches[0]), expected, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, statistics[key]) for key, value in model.state_dict().items())
    assert torch.equal(own[0].weight, scaled(model)[0].weight)


def test_the_model_itself_stays_as_it_is(model, batches):
    """Re-estimation would not: the statistics of a few images are not those of the training set."""
    own = copy.deepcopy(model)
    correct_batch_norm_(model, own, batches, example_inputs=batches[0], call=call)
    for norm, old in ((own[1], model[1]), (own[4], model[4])):
        torch.testing.assert_close(norm.running_mean, old.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, old.running_var, rtol=1e-4, atol=1e-5)


def test_dead_channels_and_pruned_norms(model, batches):
    own = copy.deepcopy(model)
    own[0].weight.data[1] = 0  # constant in the compressed model: no scale brings it back, its mean is set
    own[4] = nn.BatchNorm2d(3).eval()
    own[3] = nn.Conv2d(4, 3, 3)
    assert correct_batch_norm_(model, own, batches, example_inputs=batches[0], call=call) == 1
    assert bool(torch.isfinite(own[1].running_var).all())
    with torch.no_grad():
        a, b = (torch.cat([net[1](net[0](x)) for x in batches])[:, 1].mean() for net in (model, own))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert own[4].running_mean.tolist() == [0, 0, 0]


def test_norms_that_are_called_twice_are_left(batches):
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU(), norm).eval()
    own = copy.deepcopy(model)
    assert correct_batch_norm_(model, own, batches, example_inputs=batches[0], call=call) == 0
    assert own[0].running_mean.tolist() == [0, 0, 0]
