"""Criteria by name that need no image."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.recipe import Decomposition, Pruning
from norton_plugin.surgery import decompose_, prune_
from norton_plugin.surgery.criteria import scores_at_random, scores_by_norm
from tests.networks import Residual, settle

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def group_of(model: nn.Module, root: str):
    return next(group for group in ChannelGraph(model, X).groups() if group.root == root)


def test_small_filters_go_first_by_norm():
    torch.manual_seed(0)
    model = settle(Residual(8))
    scores = scores_by_norm(group_of(model, "layers.0.conv1"))
    norms = model.layers[0].conv1.weight.detach().flatten(1).norm(dim=1).double()
    torch.testing.assert_close(scores, norms / norms.mean(), rtol=1e-6, atol=0)
    stream = scores_by_norm(group_of(model, "stem"))
    parts = [m.weight.detach().flatten(1).norm(dim=1) for m in (model.stem, *(block.conv2 for block in model.layers))]
    torch.testing.assert_close(stream, sum((part / part.mean()).double() for part in parts), rtol=1e-5, atol=0)
    model.layers[0].conv1.weight.data[[1, 6]] *= 0.01
    report = prune_(model, X, Pruning(keeps={"layers.0.conv1": 0.75}, round_to=1, criterion="l2"))
    assert report.removed["layers.0.conv1"].outputs == (1, 6)
    assert report.groups[0].distances is None


def test_blocks_have_norms_too():
    torch.manual_seed(0)
    model = settle(Residual(8))
    dense = scores_by_norm(group_of(model, "layers.0.conv1"))
    decompose_(model, Decomposition(rank=9, allow_more_macs=True))
    torch.testing.assert_close(scores_by_norm(group_of(model, "layers.0.conv1")), dense, rtol=1e-4, atol=0)


@pytest.mark.parametrize("seed", [0, 7])
def test_random_is_by_seed_and_by_group(seed):
    torch.manual_seed(0)
    model = settle(Residual(16))
    groups = [group_of(model, root) for root in ("layers.0.conv1", "layers.1.conv1")]
    first, second = (scores_at_random(group, seed=seed) for group in groups)
    assert torch.equal(first, scores_at_random(groups[0], seed=seed))
    assert not torch.equal(first, second)
    assert not torch.equal(first, scores_at_random(groups[0], seed=seed + 1))
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        report = prune_(copy.deepcopy(model), X, Pruning(keep=0.5, criterion="random", seed=seed))
        found.append(report.removed)
    assert found[0] == found[1]
