"""Importances of Torch-Pruning give this package's groups the scores that they give Torch-Pruning's own."""

import copy
import re

import pytest
import torch
import torch_pruning as tp
from torch import nn

from norton_plugin import compress
from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.integrations.torch_pruning import criterion_of
from norton_plugin.recipe import Decomposition, Pruning, Recipe
from norton_plugin.surgery import decompose_

IMPORTANCES = {
    "magnitude": lambda: tp.importance.MagnitudeImportance(p=1),
    "taylor": tp.importance.TaylorImportance,
    "hessian": tp.importance.HessianImportance,
    "fpgm": tp.importance.FPGMImportance,
    "lamp": tp.importance.LAMPImportance,
    "bn-scale": tp.importance.BNScaleImportance,
}


def with_gradients(model: nn.Module, image: torch.Tensor) -> nn.Module:
    model(image).square().sum().backward()
    return model


@pytest.mark.parametrize("name", IMPORTANCES)
def test_scores_are_those_on_torch_prunings_own_groups(residual, image, name):
    model = with_gradients(residual, image)
    criterion = criterion_of(IMPORTANCES[name]())
    ours = {group.root: group for group in ChannelGraph(model, image).groups()}
    graph = tp.DependencyGraph().build_dependency(model, image)
    compared = 0
    for root in ("stem", "layers.0.conv1", "layers.1.conv1"):
        layer = model.get_submodule(root)
        theirs = graph.get_pruning_group(layer, tp.prune_conv_out_channels, list(range(layer.out_channels)))
        expected = IMPORTANCES[name]()(theirs)
        assert expected.std() > 0
        torch.testing.assert_close(criterion(ours[root]), expected, rtol=1e-5, atol=1e-7)
        compared += 1
    assert compared == 3


def test_blocks_are_scored_as_the_convolutions_they_equal(residual, image):
    decomposed = copy.deepcopy(residual)
    decompose_(decomposed, Decomposition(rank=9, allow_more_macs=True, sweeps=500))
    criterion = criterion_of(tp.importance.MagnitudeImportance())
    dense, blocks = (
        {group.root: criterion(group) for group in ChannelGraph(model, image).groups() if not group.blocked}
        for model in (residual, decomposed)
    )
    assert dense.keys() == blocks.keys()
    for root, scores in dense.items():
        torch.testing.assert_close(blocks[root], scores, rtol=1e-3, atol=1e-4)


def test_missing_gradients_are_named(residual, image):
    [group] = [group for group in ChannelGraph(residual, image).groups() if group.root == "stem"]
    with pytest.raises(SurgeryError, match=r"TaylorImportance needs gradients, .* group of stem .* backward\(\)"):
        criterion_of(tp.importance.TaylorImportance())(group)


RECIPE = Recipe(decomposition=Decomposition(rank=2, sweeps=5, restarts=1), pruning=Pruning(keep=0.5, round_to=1))


@pytest.mark.parametrize("name", [*IMPORTANCES, "random"])
def test_compress_keeps_the_channels_of_the_highest_scores(residual, image, name):
    """Decomposed layers are scored by the dense weights and their gradients."""
    torch.manual_seed(0)
    importance = {**IMPORTANCES, "random": tp.importance.RandomImportance}[name]()
    model = with_gradients(residual, image)
    group = next(group for group in ChannelGraph(model, image).groups() if group.root == "layers.0.conv1")
    torch.manual_seed(0)
    seen = {}

    def remembered(group):
        seen[group.root] = scores = criterion_of(importance)(group)
        return scores

    small, report = compress(model, image, RECIPE, criterion=importance if name != "random" else remembered)
    scores = seen[group.root] if name == "random" else criterion_of(IMPORTANCES[name]())(group)
    kept = scores.double().argsort()[group.size // 2 :].sort().values
    assert {entry.root: entry.after for entry in report.pruning.groups}["layers.0.conv1"] == group.size // 2
    assert report.decomposition.layers
    torch.testing.assert_close(small.layers[0].norm1.weight, model.layers[0].norm1.weight[kept])


def test_any_function_of_a_group(residual, image):
    """Scores that rise with the channel's number remove the first half."""
    small, _ = compress(residual, image, RECIPE, criterion=lambda group: torch.arange(group.size))
    torch.testing.assert_close(small.layers[1].norm1.bias, residual.layers[1].norm1.bias[8:])


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (lambda group: torch.zeros(3), r"the criterion gave shape \(3,\); expected .* \(16,\)"),
        (lambda group: [1.0] * group.size, "the criterion gave a list"),
        (lambda group: torch.full((group.size,), float("nan")), "NaN or infinite"),
        (tp.importance.TaylorImportance(), r"TaylorImportance needs gradients"),
    ],
)
def test_wrong_scores_leave_the_group_with_the_reason(residual, image, criterion, words):
    _, report = compress(residual, image, RECIPE, criterion=criterion)
    assert not report.pruning.groups
    reasons = {entry.name: entry for entry in report.pruning.skipped}
    assert reasons["stem"].code == "not-comparable"
    assert re.search(words, reasons["stem"].reason)


def test_what_is_no_criterion_is_refused_before_any_work(residual, image):
    with pytest.raises(RecipeError, match=r"criterion is 'taylor'; expected an importance .* pruning\.criterion"):
        compress(residual, image, RECIPE, criterion="taylor")
