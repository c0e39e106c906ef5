"""Target: the layer that replaces a convolution, in random geometries and with random wrong arguments."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuzzing.target import Target
from fuzzing.verdict import OK, REFUSED, Result, Wrong, attempt, note
from norton_plugin.blocks import CPD_BLOCKS, FORMS, ConvBlock, CPDBlock
from norton_plugin.blocks.convolutions import FUNCTIONS

_TOLERANCE = 1e-10  # of double precision, relative to the largest output
_MODES = ("zeros", "reflect", "replicate", "circular")
_WRONG: tuple[Any, ...] = (None, 0, -1, -(2**63), 1.5, float("nan"), "3", "", [], (1, 2, 3), (1,), (0, 1), object(), {})


def prepare(folder: Path) -> None:
    """Nothing is shared."""


def run(state: None, rng: random.Random, number: int) -> Result:
    """Compare every form of a random block with the dense convolution, or give it a wrong argument."""
    axes = drawn_axes(rng)
    arguments = geometry(rng, axes)
    if rng.random() < 0.35:
        return _refused_case(rng, CPD_BLOCKS[axes], arguments)
    note(f"{arguments}")
    answer = attempt("CPDBlock", CPD_BLOCKS[axes], **arguments)
    if answer.refused:
        raise Wrong("CPDBlock refused a sound geometry", f"{arguments}")
    block: CPDBlock = answer.value
    _check_forms(block, input_of(rng, block))
    _check_state(block, arguments)
    _check_select(rng, block)
    return OK


def drawn_axes(rng: random.Random) -> int:
    """Draw how many axes a kernel has: mostly two."""
    return rng.choice((1, 2, 2, 2, 3))


def geometry(rng: random.Random, axes: int = 2) -> dict[str, Any]:
    """Draw the arguments of a sound block."""
    groups = rng.choice((1, 1, 1, 2, 3))
    others = ((1, 3), (3, 1), (4, 3)) if axes == 2 else (tuple(rng.choice((1, 2, 3)) for _ in range(axes)),)
    kernel = rng.choice((1, 2, 3, 5 if axes < 3 else 3, *others))
    sides = kernel if isinstance(kernel, tuple) else (kernel,) * axes
    rest = (1,) * (axes - 1)
    stride = rng.choice((1, 1, 2, 3, (*rest, 2)))
    padding = rng.choice((0, 1, 2, (*(0 for _ in rest), 2), "valid", "dynamic_same", "same" if stride == 1 else 0))
    return {
        "in_channels": groups * rng.randint(1, 5),
        "out_channels": groups * rng.randint(1, 5),
        "kernel_size": kernel,
        "rank": rng.randint(1, math.prod(sides) + 2),
        "stride": stride,
        "padding": padding,
        "dilation": rng.choice((1, 1, 2, (2, *rest))),
        "groups": groups,
        "bias": rng.random() < 0.5,
        "padding_mode": rng.choice(_MODES),
        "dtype": torch.float64,
    }


def input_of(rng: random.Random, block: ConvBlock) -> Tensor:
    """Draw a map or a batch of maps that the block can read."""
    axes = len(block.kernel_size)
    size = [rng.randint(12, 17) if axes < 3 else rng.randint(7, 9) for _ in range(axes)]  # no padding reaches further
    shape = [block.in_channels, *size] if rng.random() < 0.1 else [rng.randint(1, 3), block.in_channels, *size]
    return torch.randn(shape, dtype=torch.float64)


def convolved(block: ConvBlock, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run the dense convolution, padded by the rules that torch and TensorFlow document."""
    amounts: list[int] = []
    axes = len(block.kernel_size)
    for axis in reversed(range(axes)):
        span = block.dilation[axis] * (block.kernel_size[axis] - 1)
        if block.padding == "dynamic_same":
            size = x.shape[axis - axes]
            outputs = -(-size // block.stride[axis])
            span = max((outputs - 1) * block.stride[axis] + span + 1 - size, 0)
        elif block.padding != "same":
            span = 2 * block.padding[axis]  # type: ignore[assignment, operator]
        amounts += [span // 2, span - span // 2]
    mode = "constant" if block.padding_mode == "zeros" else block.padding_mode
    padded = F.pad(x, amounts, mode=mode) if any(amounts) else x
    return FUNCTIONS[axes](padded, weight, bias, block.stride, 0, block.dilation, block.groups)


def _check_forms(block: CPDBlock, x: Tensor) -> None:
    expected = convolved(block, x, block.weight, block.bias)
    largest = float(expected.abs().max()) or 1.0
    for form in FORMS:
        for training in (False, True):
            block.train(training)
            setattr(block, "training_form" if training else "form", form)
            own = x.clone().requires_grad_()
            output = attempt("forward", block, own).value
            if output is None or output.shape != expected.shape:
                raise Wrong(f"form {form} gave another shape", f"{None if output is None else tuple(output.shape)}")
            if float((output - expected).abs().max()) > _TOLERANCE * largest:
                raise Wrong(f"form {form} differs from the dense convolution", f"{block}")
            block.zero_grad()
            output.square().sum().backward()
            for tensor in (own, *block.parameters()):
                if tensor.grad is None or not tensor.grad.isfinite().all():
                    raise Wrong(f"form {form} gives no finite gradient", f"{block}")
    block.eval()


def _check_state(block: CPDBlock, arguments: dict[str, Any]) -> None:
    other = type(block)(**arguments)
    other.load_state_dict(copy.deepcopy(block.state_dict()), strict=True)
    if not torch.equal(other.weight, block.weight):
        raise Wrong("a state dict brings back another weight", f"{block}")


def _check_select(rng: random.Random, block: CPDBlock) -> None:
    weight = block.weight.detach().clone()
    axis, size = rng.choice((("filters", weight.shape[0]), ("channels", weight.shape[1])))
    parts = block.groups if axis == "filters" else 1  # every channel group keeps as many filters
    each = size // parts
    count = rng.randint(1, each)
    keep = [part * each + place for part in range(parts) for place in sorted(rng.sample(range(each), count))]
    attempt("select_", block.select_, keep, axis)
    kept = weight[keep] if axis == "filters" else weight[:, keep]
    if not torch.allclose(block.weight, kept, rtol=1e-12, atol=0):
        raise Wrong(f"select_ on {axis} keeps something else", f"{keep} of {size}")
    for wrong, where in ([], axis), ([size * 2], axis), ([-1], axis), ([0], "rank"):
        if not attempt("select_", block.select_, wrong, where).refused:
            raise Wrong("select_ took what is not there", f"{wrong} {where}")


def _refused_case(rng: random.Random, kind_of_block: type[CPDBlock], arguments: dict[str, Any]) -> Result:
    """Return a wrong argument: refused, or taken for what it says where it can be."""
    kind = rng.choice(("number", "number", "number", "padding", "mode", "form", "groups", "dtype", "device"))
    if kind == "number":
        name = rng.choice(("in_channels", "out_channels", "kernel_size", "rank", "stride", "dilation", "groups"))
        value = rng.choice(_WRONG)
    elif kind == "padding":
        name, value = "padding", rng.choice((-1, "full", "", None, 1.5, (1, 2, 3), (-1, 0), object()))
    elif kind == "mode":
        name, value = "padding_mode", rng.choice(("mirror", "", None, 3, ["zeros"]))
    elif kind == "form":
        name, value = rng.choice(("form", "training_form")), rng.choice(("fast", "", None, 3, ["dense"]))
    elif kind == "groups":
        name, value = "groups", 7 * arguments["in_channels"]
    elif kind == "dtype":
        name, value = "dtype", rng.choice((torch.int64, torch.bool, "float32", 5))
    else:
        name, value = "device", rng.choice(("nowhere", 3.5))
    note(f"{name} = {value!r} over {arguments}")
    answer = attempt("CPDBlock", kind_of_block, **{**arguments, name: value})
    if not answer.refused and not _taken_as_said(answer.value, name, value):
        raise Wrong(f"CPDBlock took a wrong {name}", f"{value!r:.60} became {getattr(answer.value, name, None)!r:.60}")
    return REFUSED if answer.refused else OK


def _taken_as_said(block: CPDBlock, name: str, value: Any) -> bool:
    """Tell whether the argument can be meant: no value for what has a default, or the very number."""
    if name in ("dtype", "device"):
        return False
    return getattr(block, name, None) in (value, (value,) * len(block.kernel_size))


TARGET = Target(
    name="blocks",
    about="random geometries and wrong arguments of CPDBlock, against the dense convolution",
    cases=600,
    prepare=prepare,
    run=run,
    seconds=60.0,
)
