"""mmcv's ``fuse_conv_bn`` on compressed models.

It folds a BatchNorm into the convolution listed before it, and sees ``nn.Conv2d`` alone: where a CPDBlock stands
between the two, or what it was lowered to, the norm of the block ends up in another layer, silently. :func:`install`
puts a step in front of it that folds the norms of blocks into the blocks, and hides those that cannot be folded.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from norton_plugin.blocks import ConvBlock

_NORM = nn.modules.batchnorm._BatchNorm


def fold_norms_(model: nn.Module) -> int:
    """Fold BatchNorms into the blocks listed before them among the children of one module, as mmcv does.

    A norm scales filter n by g = weight / sqrt(var + eps), hence the factor that belongs to this filter alone: row n of
    the mix is multiplied by g, head n where filters share nothing, row n of the horizontal convolution of a spatial
    SVD, and the bias becomes (bias - mean) g + shift. In a lowered block it is the last convolution, whose filters may
    stand in another order than the norm's (see ``deploy.lowering.SelectChannels``). Blocks with several parents (heads
    that share convolutions but not their norms) and norms without running statistics are left as they are.

    Args:
        model: For evaluation only; changed in place, with all below it.

    Returns:
        Norms folded, each replaced by ``nn.Identity``.
    """
    parents = Counter(child for module in model.modules() for child in module._modules.values() if child is not None)
    folded = 0
    for module, name, block, norm in list(_norms_of_blocks(model)):
        if parents[block] == 1 and norm.running_mean is not None:
            _fold_(block, norm)
            module._modules[name] = nn.Identity()
            folded += 1
    return folded


def _norms_of_blocks(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module, Any]]:
    """Each norm that mmcv's order of children gives to a block: its parent, its name, the block, the norm."""
    for module in model.modules():
        last = None
        for name, child in module._modules.items():
            if child is not None and (isinstance(child, ConvBlock) or hasattr(child, "from_block")):
                last = child
            elif isinstance(child, nn.Conv2d):
                last = None
            elif isinstance(child, _NORM) and last is not None:
                yield module, name, last, child
                last = None


@contextmanager
def _hidden_norms(model: nn.Module) -> Iterator[None]:
    """Hide the norms of blocks from mmcv's function, which looks for norms among the children of one module."""
    found = list(_norms_of_blocks(model))
    for module, name, _, norm in found:
        module._modules[name] = nn.Sequential(norm)
    try:
        yield
    finally:
        for module, name, _, norm in found:
            module._modules[name] = norm


@torch.no_grad()
def _fold_(block: nn.Module, norm: Any) -> None:
    layers: list[Any] = list(block.children()) if isinstance(block, nn.Sequential) else [block]
    gain = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight
    rows = [gain, norm.running_mean, torch.zeros_like(gain) if norm.bias is None else norm.bias]
    if not isinstance(layers[-1], nn.Conv2d | ConvBlock):  # the last layer picks filters from their places
        index, places = layers.pop().index, layers[-1].out_channels
        rows = [row.new_zeros(places).index_copy(0, index, row) for row in rows]
    gain, mean, shift = rows
    owner = layers[-1]
    weight = getattr(owner, owner.filter_factor if isinstance(owner, ConvBlock) else "weight")
    bias = -mean * gain if owner.bias is None else (owner.bias - mean) * gain
    weight.mul_(gain.to(weight).reshape(-1, *(1,) * (weight.dim() - 1)))
    owner.bias = nn.Parameter((bias + shift).to(weight))


def install() -> None:
    """Put the step in front of mmcv's function; do nothing without mmcv, or the second time.

    Modules that had imported the function by its name get the new one as well.
    """
    if importlib.util.find_spec("mmcv") is None:
        return
    # By its name in full: the package has the function where the module would be.
    home: Any = importlib.import_module("mmcv.cnn.utils.fuse_conv_bn")
    original = home.fuse_conv_bn
    if hasattr(original, "__wrapped__"):
        return

    depth = 0

    @functools.wraps(original)
    def fuse(module: nn.Module) -> nn.Module:
        nonlocal depth
        if depth:  # it calls itself, hence this, on what lies deeper
            return original(module)
        fold_norms_(module)
        depth += 1
        try:
            with _hidden_norms(module):
                return original(module)
        finally:
            depth -= 1

    for holder in list(sys.modules.values()):
        if getattr(holder, "__dict__", {}).get("fuse_conv_bn") is original:
            holder.fuse_conv_bn = fuse  # type: ignore[attr-defined]
