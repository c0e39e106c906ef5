"""Which equivalent form a block runs in, from its sizes alone (docs/method.md, section 5)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from norton_plugin.blocks.convolutions import CHANNELS_LAST
from norton_plugin.blocks.forms import Form
from norton_plugin.blocks.padding import sides
from norton_plugin.blocks.stages import BlockShape, Kind, stages

if TYPE_CHECKING:
    from norton_plugin.blocks.conv_block import ConvBlock

_TYPICAL_SIZES = {1: (784,), 2: (28, 28), 3: (8, 28, 28)}  # of maps, where they are not known


class KindCost(NamedTuple):
    """What one kind of convolution takes, in milliseconds.

    Attributes:
        macs: Per million multiply-accumulates.
        numbers: Per million numbers read and written.
        groups: Per thousand groups.
    """

    macs: float
    numbers: float
    groups: float = 0.0


class FormCosts(NamedTuple):
    """What forms take on one kind of device, in milliseconds.

    Attributes:
        kinds: Of each kind of convolution.
        call: Per convolution, whatever its size.
    """

    kinds: dict[Kind, KindCost]
    call: float


# Fitted by tools/benchmarks/fit_form_costs.py to one core with AVX-512; ratios are what counts.
_CPU = FormCosts(
    {
        "full": KindCost(0.0209, 0.200),
        "narrow": KindCost(0.0, 0.381, 1.196),
        "line": KindCost(0.733, 0.419, 0.155),
        "sum": KindCost(0.166, 0.322, 4.808),
        "depthwise": KindCost(0.0496, 0.398, 0.244),
    },
    0.0318,
)
_CPU_CHANNELS_LAST = FormCosts(
    {
        "full": KindCost(0.0205, 0.170),
        "narrow": KindCost(0.0, 0.209, 1.271),
        "line": KindCost(0.486, 0.189, 0.182),
        "sum": KindCost(0.0, 1.302, 7.104),
        "depthwise": KindCost(0.0474, 0.218, 0.216),
    },
    0.0252,
)
# Not measured: 20 T MACs/s, 2 TB/s in single precision, and convolutions in small groups as slow as cuDNN's.
_ACCELERATOR = FormCosts(
    {
        "full": KindCost(5e-5, 2e-3),
        "narrow": KindCost(2e-3, 4e-3),
        "line": KindCost(2e-3, 4e-3),
        "sum": KindCost(2e-3, 4e-3),
        "depthwise": KindCost(2e-4, 3e-3),
    },
    0.005,
)
# Making the weight anew, which a block in its dense form does in every call: per million MACs, numbers of the weight.
_REBUILDING = {"filter": (0.252, 0.588), "shared": (0.0254, 0.588)}
# A factored form has to be faster than the dense one by this much to be worth the risk of an estimate.
_MARGIN = 0.9


def form_for(block: ConvBlock, x: Tensor | None = None, *, lowered: bool = True) -> tuple[Form, str]:
    """Choose the form in which a block should be fastest on an input, without measuring.

    Args:
        block: Its factors are not read.
        x: The input; None, and what a compiler shows, for one whose size is not known. Where ``torch.jit`` traces, as
            get_flops.py of mmdet does, the form is ``"separable"``, by which MACs are reported.
        lowered: As of ``static_form``.

    Returns:
        The form, and in words why it was chosen.
    """
    if torch.jit.is_tracing():
        return "separable", "a tracer, such as a counter of MACs, sees what the factors need"
    axes = len(block.kernel_size)
    shape, channels_last = shape_for(block, _TYPICAL_SIZES[axes]), False
    if x is not None and not torch.compiler.is_compiling():
        shape, channels_last = shape_of_input(block, x), is_channels_last(x)
    device = next(block.parameters()).device.type
    return static_form(shape, device=device, channels_last=channels_last, lowered=lowered)


def shape_of_input(block: ConvBlock, x: Tensor) -> BlockShape:
    """Return the sizes that decide how fast each form of a block is on an input, (B, C, H, W)."""
    axes = len(block.kernel_size)
    return shape_for(block, tuple(x.shape[-axes:]), x.shape[: -axes - 1].numel())


def shape_for(block: ConvBlock, input_size: tuple[int, ...], batch: int = 1) -> BlockShape:
    """Return the sizes that decide how fast each form of a block is.

    Args:
        block: Its factors are not read.
        input_size: (Hi, Wi), or of as many axes as the kernel has; before padding.
        batch: Images per call.
    """
    geometry = {"kernel_size": block.kernel_size, "stride": block.stride, "dilation": block.dilation}
    amounts = sides(block.padding, size=input_size, **geometry)
    added = [first + last for first, last in zip(amounts[::2], amounts[1::2], strict=True)][::-1]
    lengths = zip(input_size, added, block.kernel_size, block.dilation, block.stride, strict=True)
    output_size = tuple(max(1, (side + more - d * (k - 1) - 1) // s + 1) for side, more, k, d, s in lengths)
    return BlockShape(
        block.in_channels,
        block.out_channels,
        block.kernel_size,
        block.groups,
        None if block.level == "filter" else block.clusters,
        block.rank,
        getattr(block, "cluster_size", 1),
        input_size,
        output_size,
        batch,
        spatial=block.level == "spatial",
    )


@lru_cache(maxsize=4096)
def static_form(
    shape: BlockShape, *, device: str = "cpu", channels_last: bool = False, lowered: bool = True
) -> tuple[Form, str]:
    """Choose the form that should be fastest; nothing is measured.

    Args:
        shape: Of the block and of its input.
        device: Type of the device, as of ``torch.device.type``.
        channels_last: Memory format of the input.
        lowered: Whether the block will be lowered; otherwise the dense form makes its weight in every call.

    Returns:
        The form, and in words why it was chosen.
    """
    milliseconds = estimate(shape, device=device, channels_last=channels_last, lowered=lowered)
    factored = min((form for form in shape.forms if form != "dense"), key=lambda form: milliseconds[form])
    gain = milliseconds["dense"] / milliseconds[factored]
    if gain * _MARGIN <= 1:
        return "dense", f"no factored form should be faster than the dense one ({factored}: {gain:.1f}x)"
    return factored, f"should be {gain:.1f}x as fast as the dense form"


def estimate(shape: BlockShape, *, device: str, channels_last: bool, lowered: bool) -> dict[Form, float]:
    """Estimate the milliseconds of every form; arguments as of ``static_form``. Ratios are what counts."""
    costs = _ACCELERATOR if device != "cpu" else _CPU_CHANNELS_LAST if channels_last else _CPU
    found: dict[Form, float] = {form: _sum(shape, form, costs) for form in shape.forms}
    if not lowered:
        macs, numbers = _REBUILDING["filter" if shape.clusters is None else "shared"]
        weight = shape.filters * (shape.channels // shape.groups) * math.prod(shape.kernel_size) / 1e6
        scale = costs.kinds["full"].macs / _CPU.kinds["full"].macs
        found["dense"] += scale * weight * (macs * shape.rank + numbers) + costs.call
    return found


def _sum(shape: BlockShape, form: Form, costs: FormCosts) -> float:
    total = 0.0
    for stage in stages(shape, form):
        cost = costs.kinds[stage.kind]
        total += costs.call + 1e-6 * (stage.macs * cost.macs + stage.numbers * cost.numbers)
        total += 1e-3 * stage.groups * cost.groups
    return total


def is_channels_last(x: Tensor) -> bool:
    """Tell whether a map (B, C, H, W) or (B, C, D, H, W) lies in memory with its channels last, and could otherwise."""
    memory_format = CHANNELS_LAST.get(x.dim() - 2)
    return memory_format is not None and x.is_contiguous(memory_format=memory_format) and not x.is_contiguous()
