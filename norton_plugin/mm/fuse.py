"""mmcv's ``fuse_conv_bn`` on compressed models.

It folds a BatchNorm into the convolution listed before it, and sees ``nn.Conv2d`` alone: where a CPDBlock stands
between the two, the norm of the block ends up in another layer, silently. :func:`install` puts a step in front of it
that folds the norms of blocks into the blocks.
"""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from typing import Any

import torch
from torch import nn

from ..blocks import CPDBlock

_NORM = nn.modules.batchnorm._BatchNorm


def fold_norms_(model: nn.Module) -> int:
    """Folds BatchNorms into the CPDBlocks listed before them among the children of one module, as mmcv does.

    A norm scales filter n by g = weight / sqrt(var + eps), hence one of its factors: head n is multiplied by g, and
    the bias becomes (bias - mean) g + shift. Blocks with several parents (heads that share convolutions but not their
    norms) and norms without running statistics are left as they are.

    Args:
        model: For evaluation only; changed in place, with all below it.

    Returns:
        Norms folded, each replaced by ``nn.Identity``.
    """
    parents = Counter(child for module in model.modules() for child in module._modules.values() if child is not None)
    folded = 0
    for module in list(model.modules()):
        last = None
        for name, child in list(module._modules.items()):
            if isinstance(child, nn.Conv2d | CPDBlock):
                last = child if isinstance(child, CPDBlock) and parents[child] == 1 else None
            elif isinstance(child, _NORM) and last is not None and child.running_mean is not None:
                _fold_(last, child)
                module._modules[name] = nn.Identity()
                folded, last = folded + 1, None
    return folded


@torch.no_grad()
def _fold_(block: CPDBlock, norm: Any) -> None:
    mean, variance = norm.running_mean, norm.running_var
    gain = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight
    bias = -mean * gain if block.bias is None else (block.bias - mean) * gain
    if norm.bias is not None:
        bias = bias + norm.bias
    block.head.mul_(gain.to(block.head)[:, None, None])
    block.bias = nn.Parameter(bias.to(block.head))


def install() -> None:
    """Puts the step in front of mmcv's function; does nothing without mmcv, or the second time."""
    if importlib.util.find_spec("mmcv") is None:
        return
    # By their names in full: the innermost has that of its function, which hides it as an attribute.
    holders: list[Any] = [
        importlib.import_module(f"mmcv.cnn{deeper}") for deeper in ("", ".utils", ".utils.fuse_conv_bn")
    ]
    original = holders[-1].fuse_conv_bn
    if hasattr(original, "__wrapped__"):
        return

    depth = 0

    @functools.wraps(original)
    def fuse(module: nn.Module) -> nn.Module:
        nonlocal depth
        if depth == 0:
            fold_norms_(module)
        depth += 1
        try:
            return original(module)  # calls itself, hence this, on what lies deeper
        finally:
            depth -= 1

    for holder in holders:
        holder.fuse_conv_bn = fuse
