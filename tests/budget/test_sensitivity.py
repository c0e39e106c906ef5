"""Errors weighed as those of the outputs."""

import pytest
import torch
from torch import nn

from norton_plugin import Budget, Recipe, compress
from norton_plugin.budget import plan_budget
from norton_plugin.budget.sensitivity import layer_sensitivities
from norton_plugin.calibration import fisher_weights
from norton_plugin.cost import count_cost
from norton_plugin.recipe import Decomposition, Scope
from norton_plugin.surgery.targets import plan_decomposition

IMAGES = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
RECIPE = Recipe(budget=Budget(macs=0.5), decomposition=Decomposition(level="layer", restarts=1, sweeps=5))


def _call(model, batch):
    return model(batch)


def sensitive_weights(*args, **settings):
    return [each.seen() for each in layer_sensitivities(*args, **settings)]


def _targets(model):
    return plan_decomposition(model, Decomposition(level="layer", share=1.0), scope=Scope(), map_sizes={})[0]


def test_squares_are_half_the_fisher_weight_times_the_error_of_the_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Tanh(), nn.Conv2d(12, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = model.eval()
    images = [batch[:, :, :4, :4] for batch in IMAGES]  # 16 positions: all are read
    target = _targets(model)[-1]
    (found,) = sensitive_weights(model, [target], images, call=_call, seed=0)
    fisher = fisher_weights(model, {"2": model[2]}, images, call=_call)["2"]
    with torch.no_grad():
        inputs = torch.cat([model[1](model[0](batch)) for batch in images]).movedim(1, 0).flatten(1).double()
    covariance = torch.cov(inputs, correction=0)
    weight = model[2].weight.detach().double().flatten(1)
    expected = (fisher / 2 * (weight @ covariance * weight).sum(1)).sum()
    assert float(found.square().sum()) == pytest.approx(float(expected), rel=1e-4)


def test_kernel_rows_and_columns_count_as_they_vary():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    # All pixels of a column are alike, so only the sum over kernel rows is seen.
    images = [batch[:, :, :1].expand(-1, -1, 6, -1) for batch in IMAGES]
    model[0].weight.data -= model[0].weight.data.mean(2, keepdim=True)
    unseen, *_ = sensitive_weights(model, _targets(model), images, call=_call, seed=0)
    model[0].weight.data += 1.0
    seen, *_ = sensitive_weights(model, _targets(model), images, call=_call, seed=0)
    assert float(unseen.square().sum()) < 1e-6 * float(seen.square().sum())


class _Branches(nn.Module):
    """Two equal branches, one of which sees two channels only."""

    def __init__(self):
        super().__init__()
        self.many, self.few = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 10)
        self.register_buffer("seen", torch.tensor([1.0, 1.0] + 14 * [0.0])[:, None, None])

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head((self.many(x).relu() + self.few(x * self.seen).relu()).mean((2, 3)))


def test_a_layer_that_sees_little_becomes_smaller():
    torch.manual_seed(0)
    model = _Branches().eval()
    cost = count_cost(model, lambda: model(IMAGES[0]))
    plain = {layer.name: layer.macs for layer in plan_budget(model, RECIPE, cost).layers}
    found = plan_budget(model, RECIPE, cost, batches=IMAGES)
    shares = {layer.name: layer.macs for layer in found.layers}
    assert found.measure == "outputs"
    assert shares["few"] < 0.75 * plain["few"]
    assert shares["many"] > plain["many"]
    assert 0.98 * 0.5 <= found.macs <= 0.5


def test_images_weigh_in_compress_and_leave_the_model_as_it_was(residual, image):
    before = {name: tensor.clone() for name, tensor in residual.state_dict().items()}
    first, again = (compress(residual, image, RECIPE, calibration=iter(IMAGES)) for _ in range(2))
    assert first.report.budget.measure == "outputs"
    assert first.report.calibration_images == 64
    assert again.report.budget == first.report.budget
    assert compress(residual, image, RECIPE).report.budget.measure == "weights"
    assert all(torch.equal(tensor, before[name]) for name, tensor in residual.state_dict().items())
    assert all(parameter.grad is None for parameter in residual.parameters())


def test_without_gradients_all_layers_count_by_their_weights(residual, image):
    class Stopped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = residual

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    report = compress(Stopped(), image, RECIPE, calibration=IMAGES).report
    assert report.budget.measure == "weights"
