"""Models that keep something of every run, such as a running mean: what runs of a compression leave is taken back."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.deploy import prepare
from norton_plugin.errors import SurgeryError
from norton_plugin.recipe import Calibration, Decomposition, Distillation, Pruning


class Stateful(nn.Module):
    """Subtracts a running mean of its inputs, and counts its runs in a buffer and in an attribute."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.calls, self.last_size, self.sizes = in_place, 0, None, []
        self.register_buffer("mean", torch.full((3,), 0.25))
        self.register_buffer("runs", torch.tensor(7))
        self.register_buffer("absent", None)
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now = x.detach().mean((0, 2, 3))
        if self.in_place:
            self.mean.mul_(0.9).add_(0.1 * now)
            self.runs.add_(1)
        else:
            self.mean, self.runs = 0.9 * self.mean + 0.1 * now, self.runs + 1
        self.calls, self.last_size, self.latest = self.calls + 1, x.shape[2:], now
        self.sizes.append(self.last_size)
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(x.shape[2:]))
        x = self.second(torch.relu(self.first(x - self.mean[None, :, None, None])))
        return self.head(torch.relu(self.norm(x)).mean((2, 3)))


RECIPE = Recipe(decomposition=Decomposition(rank=2), pruning=Pruning(keep=0.5))


@pytest.fixture(params=[True, False], ids=["in place", "replaced"])
def model(request: pytest.FixtureRequest) -> Stateful:
    return Stateful(in_place=request.param).eval()


def _is_as_new(model: nn.Module) -> bool:
    kept = torch.equal(model.mean, torch.full((3,), 0.25)) and model.runs == 7
    plain = (model.calls, model.last_size, model.sizes, model.absent) == (0, None, [], None)
    return bool(kept) and plain and not hasattr(model, "late") and not hasattr(model, "latest")


@pytest.mark.parametrize("fit", [False, True])
def test_both_models_are_as_before_their_runs(model: Stateful, fit: bool) -> None:
    before = copy.deepcopy(model.state_dict())
    recipe = RECIPE
    if fit:
        recipe = Recipe(
            decomposition=RECIPE.decomposition, pruning=RECIPE.pruning, calibration=Calibration(images=8, fit=True)
        )
    images = [torch.rand(4, 3, 8, 8) + 1 for _ in range(2)]
    result = compress(model, images[0], recipe, calibration=images if fit else None)
    assert _is_as_new(model) and _is_as_new(result.model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.model.first.out_channels == 8


@pytest.mark.parametrize("training", [True, False], ids=["some frozen", "all frozen"])
def test_a_frozen_vector_that_runs_change_comes_back(training: bool) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.scale.mul_(0.9)
            return self.second(torch.relu(self.first(x * self.scale[:, None, None])))

    model, x = Scaled().eval(), torch.rand(2, 3, 8, 8)
    if not training:
        model.requires_grad_(False)
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(prepare(model, x).model(x), expected)
    compressed = compress(model, x, RECIPE).model
    assert compressed.first.out_channels == 8
    assert torch.equal(model.scale, torch.ones(3)) and torch.equal(compressed.scale, torch.ones(3))


def test_frozen_biases_are_fitted() -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16, 4)).eval().requires_grad_(False)
    images = [torch.rand(16, 3, 8, 8) + 1 for _ in range(8)]
    recipe = Recipe(decomposition=Decomposition(rank=1), calibration=Calibration(images=128, fit=True))
    result = compress(model, images[0], recipe, calibration=images)
    assert result.report.calibration.chosen != "plain"
    assert not torch.equal(result.model[2].bias, model[2].bias)


def test_learning_from_the_dense_model_leaves_no_state(model: Stateful) -> None:
    recipe = Recipe(decomposition=RECIPE.decomposition, distillation=Distillation(passes=1))
    result = compress(model, torch.rand(2, 3, 8, 8), recipe, calibration=[torch.rand(4, 3, 8, 8) for _ in range(3)])
    assert _is_as_new(model) and _is_as_new(result.model)


@pytest.mark.parametrize("forms", ["static", "measured"])
def test_a_prepared_model_starts_where_the_given_one_stands(model: Stateful, forms: str) -> None:
    x = torch.rand(2, 3, 8, 8)
    expected = copy.deepcopy(model)(x)
    prepared = prepare(model, x, forms=forms, rounds=1).model
    assert _is_as_new(model) and _is_as_new(prepared)
    torch.testing.assert_close(prepared(x), expected)


def test_the_model_is_as_before_where_the_compression_fails(model: Stateful) -> None:
    def step(name: str) -> None:
        if name == "prune":
            model(torch.rand(1, 3, 8, 8))
            raise SurgeryError("that is enough")

    with pytest.raises(SurgeryError, match="enough"):
        compress(model, torch.rand(1, 3, 8, 8), RECIPE, on_step=step)
    assert _is_as_new(model)


def test_a_state_is_cut_with_its_channels() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.arange(16.0))
            self.register_buffer("runs", torch.tensor(7))
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
            self.runs += 1
            return self.second(torch.relu(x - self.mean[None, :, None, None]))

    model = Inner().eval()
    compressed = compress(model, torch.rand(1, 3, 8, 8), Recipe(pruning=Pruning(keep=0.5))).model
    assert torch.equal(model.mean, torch.arange(16.0)) and model.runs == compressed.runs == 7
    kept = [int(mean) for mean in compressed.mean]
    assert len(kept) == compressed.first.out_channels == 8
    assert torch.equal(compressed.first.weight, model.first.weight[kept])
