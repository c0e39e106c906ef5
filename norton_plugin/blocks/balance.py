"""Factors of blocks made equally large before training, so that one learning rate suits all of them.

An optimizer such as AdamW moves every parameter by about the same amount. A component of a convolution has a head of C
entries and a vertical of Kh: with equal norms the entries of the vertical are sqrt(C / Kh) times as large as those of
the head and move, relative to their size, that much more slowly. With equal root mean squares all move alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from norton_plugin.blocks.conv_block import ConvBlock
from norton_plugin.blocks.cpd_block import CPDBlock
from norton_plugin.blocks.cpd_linear import CPDLinear
from norton_plugin.blocks.spatial_svd_block import SpatialSVDBlock


class _Factor(NamedTuple):
    """One factor of a block.

    Attributes:
        parameter: Of the block.
        entries: The same values as (rows, R, entries).
        cluster: The cluster of every row, int64 (rows,): a component is one of R of one cluster.
    """

    parameter: nn.Parameter
    entries: Tensor
    cluster: Tensor


@torch.no_grad()
def balance_(model: nn.Module) -> int:
    """Give the factors of every component the same root mean square, in place; the weights stay as they are.

    Args:
        model: Its blocks are changed, up to rounding not in what they compute. A component with a factor of zeros or
            of values that are not finite is left as it is, and so are frozen blocks.

    Returns:
        How many blocks were changed.
    """
    blocks = [module for module in model.modules() if isinstance(module, ConvBlock | CPDLinear)]
    trained = [block for block in blocks if all(factor.parameter.requires_grad for factor in _factors(block))]
    for block in trained:
        factors = _factors(block)
        clusters = int(max(factor.cluster.max() for factor in factors)) + 1
        sizes = torch.stack([_root_mean_square(factor, clusters) for factor in factors])
        common = sizes.log().mean(0).exp()
        scales = torch.where((sizes > 0).all(0) & sizes.isfinite().all(0), common / sizes, 1.0)
        for factor, scale in zip(factors, scales, strict=True):
            scaled = factor.entries.double() * scale[factor.cluster].unsqueeze(2)
            factor.parameter.copy_(scaled.reshape(factor.parameter.shape))
    return len(trained)


def _root_mean_square(factor: _Factor, clusters: int) -> Tensor:
    """Return that of every component, float64 (clusters, R)."""
    squares = factor.entries.double().square().mean(2)
    sums = squares.new_zeros(clusters, squares.shape[1]).index_add_(0, factor.cluster, squares)
    return (sums / factor.cluster.bincount(minlength=clusters).unsqueeze(1)).sqrt()


def _factors(block: ConvBlock | CPDLinear) -> list[_Factor]:
    """List the factors of a block; a product of theirs is the weight."""
    if isinstance(block, CPDLinear):
        one = block.head.new_zeros(len(block.mix), dtype=torch.long)
        return [_Factor(block.head, block.head[None], one[:1]), _Factor(block.mix, block.mix[..., None], one)]
    if isinstance(block, SpatialSVDBlock):
        own = torch.arange(block.groups, device=block.vertical.device)
        vertical = block.vertical.reshape(block.groups, block.horizontal.shape[1], -1)
        filters = own.repeat_interleave(block.out_channels // block.groups)
        return [_Factor(block.vertical, vertical, own), _Factor(block.horizontal, block.horizontal, filters)]
    if not isinstance(block, CPDBlock):
        return []
    own = torch.arange(len(block.head), device=block.head.device)
    kernels = (block.head, *block.kernel)
    found = [_Factor(kernel, kernel, own) for kernel in kernels]
    return found if block.mix is None else [*found, _Factor(block.mix, block.mix.unsqueeze(2), block.cluster)]
