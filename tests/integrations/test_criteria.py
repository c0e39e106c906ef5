"""Importances of Torch-Pruning give this package's groups the scores that they give Torch-Pruning's own."""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

from norton_plugin.channels import LabelGraph
from norton_plugin.errors import SurgeryError
from norton_plugin.integrations.torch_pruning import criterion_of
from norton_plugin.recipe import Decomposition
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
    ours = {group.root: group for group in LabelGraph(model, image).groups()}
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
    decompose_(decomposed, Decomposition(rank=9, allow_dearer=True, sweeps=500))
    criterion = criterion_of(tp.importance.MagnitudeImportance())
    dense, blocks = (
        {group.root: criterion(group) for group in LabelGraph(model, image).groups() if not group.blocked}
        for model in (residual, decomposed)
    )
    assert dense.keys() == blocks.keys()
    for root, scores in dense.items():
        torch.testing.assert_close(blocks[root], scores, rtol=1e-3, atol=1e-4)


def test_missing_gradients_are_named(residual, image):
    [group] = [group for group in LabelGraph(residual, image).groups() if group.root == "stem"]
    with pytest.raises(SurgeryError, match=r"TaylorImportance needs gradients, .* group of stem .* backward\(\)"):
        criterion_of(tp.importance.TaylorImportance())(group)
