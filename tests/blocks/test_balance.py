"""Balanced factors: equal root mean squares, the same weight, and nothing else changed."""

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock, CPDBlock1d, CPDBlock3d, CPDLinear, SpatialSVDBlock, balance_

BLOCKS = {
    "filter": lambda: CPDBlock(12, 8, 3, 2),
    "filter 1x5": lambda: CPDBlock(12, 8, (1, 5), 3, groups=4),
    "layer": lambda: CPDBlock(12, 8, 3, 6, clusters=1),
    "clusters": lambda: CPDBlock(12, 8, 3, 4, clusters=3),
    "1x1": lambda: CPDBlock(12, 8, 1, 5, clusters=1),
    "volume": lambda: CPDBlock3d(12, 8, (3, 1, 3), 2),
    "shared volume": lambda: CPDBlock3d(12, 8, 3, 4, clusters=2),
    "signal": lambda: CPDBlock1d(12, 8, 3, 2),
    "spatial": lambda: SpatialSVDBlock(12, 8, 3, 2, groups=2),
    "linear": lambda: CPDLinear(12, 8, 5),
}


def unbalanced(make):
    """A block whose components have factors of very different sizes."""
    torch.manual_seed(0)
    block = make().double()
    for power, parameter in enumerate(p for name, p in block.named_parameters() if name != "bias"):
        parameter.data *= 10.0**power * torch.rand_like(parameter).add(0.5)
    return block


def components_of(block, name, parameter):
    """The entries of each component in one factor, read off shape by shape: a list of vectors."""
    if isinstance(block, CPDLinear):
        return list(parameter) if name == "head" else list(parameter.T)
    if isinstance(block, SpatialSVDBlock):
        if name == "vertical":
            return [row.flatten() for row in parameter]
        filters = len(parameter) // block.groups
        return [
            parameter[g * filters : (g + 1) * filters, r].flatten()
            for g in range(block.groups)
            for r in range(block.rank)
        ]
    if name == "mix":
        return [parameter[block.cluster == k, r] for k in range(block.clusters) for r in range(block.rank)]
    return list(parameter.flatten(0, 1))


@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
def test_factors_become_equally_large_and_the_weight_stays(make):
    block = unbalanced(make)
    weight = block.weight.detach().clone()
    assert balance_(nn.Sequential(block)) == 1
    torch.testing.assert_close(block.weight, weight, rtol=1e-10, atol=0.0)
    sizes = torch.stack(
        [
            torch.stack([entries.square().mean().sqrt() for entries in components_of(block, name, parameter)])
            for name, parameter in block.named_parameters()
            if name != "bias"
        ]
    )
    torch.testing.assert_close(sizes, sizes[:1].expand_as(sizes), rtol=1e-10, atol=0.0)


def test_zero_components_and_frozen_blocks_stay_as_they_are():
    block, frozen = unbalanced(BLOCKS["layer"]), unbalanced(BLOCKS["layer"]).requires_grad_(False)
    block.mix.data[:, 2] = 0.0
    head, other, still = block.head[0, 2].clone(), block.head[0, 1].clone(), frozen.head.clone()
    assert balance_(nn.Sequential(block, frozen, nn.Conv2d(3, 3, 3))) == 1
    assert torch.equal(block.head[0, 2], head) and torch.equal(frozen.head, still)
    assert not torch.equal(block.head[0, 1], other)
