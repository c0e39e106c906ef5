"""Channels ranked by what their removal costs the outputs of the layers that read them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import compress
from norton_plugin.calibration import OutputCriterion, fisher_weights, input_moments
from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.recipe import Calibration, Decomposition, Pruning, Recipe
from norton_plugin.surgery import prune_
from tests.calibration.test_calibrate import error, images
from tests.calibration.test_compensation import twins
from tests.networks import Dense, Residual, settle


class Small(nn.Module):
    """Two convolutions and a classifier that is fed by the second."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 5, 3, padding=1)
        self.b = nn.Conv2d(5, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def group_of(model: nn.Module, root: str):
    return next(group for group in ChannelGraph(model, images(2)[0]).groups() if group.root == root)


def test_the_first_to_go_is_that_of_brute_force():
    """Least squares on all patches for each channel left out, weighed by the Fisher information of the outputs."""
    torch.manual_seed(0)
    model, batches = Small().eval(), images(64)
    scores = OutputCriterion(model, batches, example_inputs=batches[0], positions=64)(group_of(model, "a"))
    fisher = fisher_weights(model, {"b": model.b}, batches, call=lambda net, x: net(x))["b"]
    with torch.no_grad():
        x = torch.relu(model.a(torch.cat(batches)))
        rows = nn.functional.unfold(x.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
        targets = model.b(x).double().flatten(2).transpose(1, 2).flatten(0, 1)
    rows, targets = rows - rows.mean(0), targets - targets.mean(0)
    ridge = 1e-3 * float(rows.square().mean()) * len(rows)
    weight = model.b.weight.detach().double().flatten(1)
    costs = []
    for channel in range(5):
        kept = [i for i in range(45) if i // 9 != channel]
        second = rows.T @ rows + ridge * torch.eye(45)
        cross = weight @ second
        best = cross[:, kept] @ torch.linalg.inv(second[kept][:, kept])
        lost = (cross * weight).sum(1) - (best * cross[:, kept]).sum(1)
        costs.append(float((fisher / 2 * lost).sum() / len(rows)))
    assert int(scores.argmin()) == min(range(5), key=costs.__getitem__)
    assert float(scores.min()) == pytest.approx(min(costs), rel=1e-3)


def test_a_copy_goes_first_in_a_stream():
    model = twins()
    criterion = OutputCriterion(model, images(96), example_inputs=images(2)[0], positions=64)
    first = {int(criterion(group_of(model, root)).argmin()) for root in ("stem", "layers.0.conv1")}
    assert first <= {2, 5}


def test_moments_by_axis_give_about_the_same_order(monkeypatch):
    torch.manual_seed(3)
    model = settle(Residual(16))
    found = []
    for most in (10**6, 1):
        monkeypatch.setattr(input_moments, "_MOST_INPUTS", most)
        criterion = OutputCriterion(model, images(96), example_inputs=images(2)[0], positions=64)
        found.append([criterion(group_of(model, f"layers.{i}.conv1")).argsort().argsort().double() for i in (0, 1)])
    for exact, by_axis in zip(*found, strict=True):
        assert not torch.equal(exact, by_axis)
        assert float(torch.corrcoef(torch.stack([exact, by_axis]))[0, 1]) > 0.8


def test_equal_parts_groups_and_flattened_maps_are_ranked():
    torch.manual_seed(0)
    model, batches = Dense().eval(), images(64)
    own = copy.deepcopy(model)
    criterion = OutputCriterion(model, batches, example_inputs=batches[0])
    report = prune_(own, batches[0], Pruning(keep=0.5, round_to=1), criterion=criterion)
    plain = prune_(copy.deepcopy(model), batches[0], Pruning(keep=0.5, round_to=1))
    assert {group.root for group in report.groups} == {group.root for group in plain.groups}
    assert not [entry for entry in report.skipped if entry.code == "not-comparable"]


def test_by_name_it_needs_images_before_any_work():
    model = settle(Residual(8))
    recipe = Recipe(pruning=Pruning(keep=0.75, round_to=1, criterion="output"))
    with pytest.raises(RecipeError, match="'output', which needs unlabelled images: give calibration=batches"):
        compress(model, torch.randn(1, 3, 8, 8), recipe, on_step=lambda step: pytest.fail(step))
    with pytest.raises(RecipeError, match="needs unlabelled images"):
        prune_(model, torch.randn(1, 3, 8, 8), recipe.pruning)
    # A function in its place needs none, and what prunes nothing asks for none.
    compress(model, torch.randn(1, 3, 8, 8), recipe, criterion=lambda group: torch.arange(group.size))
    compress(
        model,
        torch.randn(1, 3, 8, 8),
        Recipe(decomposition=Decomposition(rank=1), pruning=Pruning(criterion="output")),
    )


def test_it_keeps_more_than_random_does_and_the_same_seed_the_same():
    torch.manual_seed(3)
    model, others = settle(Residual(16)), images(seed=9)
    errors = {}
    for criterion in ("output", "output", "random", "l2", "pabs"):
        recipe = Recipe(
            pruning=Pruning(keep=0.5, round_to=1, criterion=criterion), calibration=Calibration(fit=True, positions=64)
        )
        result = compress(model, others[0], recipe, calibration=iter(images(96)))
        found = error(model, result.model, others)
        assert errors.get(criterion, found) == found
        errors[criterion] = found
    assert errors["output"] < 0.8 * min(errors["random"], errors["pabs"], errors["l2"])


def test_nothing_that_reads_the_channels_is_said():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.a(x))).mean((2, 3))

    model = Sums().eval()
    criterion = OutputCriterion(model, images(16), example_inputs=images(2)[0])
    with pytest.raises(SurgeryError, match="no convolution and no Linear layer that the images reach"):
        criterion(group_of(model, "a"))


def test_the_model_stays_and_images_that_do_not_fit_are_named():
    model = settle(Residual(8)).train()
    before = copy.deepcopy(model.state_dict())
    OutputCriterion(model, images(16), example_inputs=images(2)[0])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training and not any(module._forward_hooks for module in model.modules())
    with pytest.raises(SurgeryError, match="does not run on a calibration batch"):
        OutputCriterion(model, [images()[0][:, :2]], example_inputs=images(2)[0])
    assert not any(module._forward_hooks for module in model.modules())
