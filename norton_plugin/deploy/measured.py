"""The measured choice of a block's form: each form as it will run, its norm folded, on the input it really gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear, Form
from norton_plugin.blocks.form_choice import shape_of_input
from norton_plugin.deploy.fold_weights import folded, rest_of
from norton_plugin.deploy.latency import compare_latency
from norton_plugin.deploy.lowering import SelectChannels, lower_block
from norton_plugin.deploy.memory_format import FORMATS, laid_out, lay_out_


def clock() -> Callable[[], float]:
    """Return the fairest stopwatch: on one CPU thread the processor's, which leaves out what other programs took."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return time.process_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter


def lowered_with(block: ConvBlock | CPDLinear, form: Form | None, norm: nn.Module | None) -> nn.Module:
    """Return a lowered block with the norm that follows it in its last convolution.

    Args:
        block: Left as it is.
        form: As of ``lower_block``.
        norm: None where none was folded.
    """
    lowered = lower_block(block, form).eval()
    if norm is None:
        return lowered
    if not isinstance(lowered, nn.Sequential):
        return folded(lowered, norm)
    end = lowered[-1]
    selector, last = (end, -2) if isinstance(end, SelectChannels) else (None, -1)
    lowered[last] = folded(lowered[last], norm, None if selector is None else selector.index)
    return lowered


class FormTimer:
    """Measures blocks, those of the same sizes once.

    Args:
        rounds: Timed calls of each form.
    """

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._known: dict[Any, dict[Form, float]] = {}

    def milliseconds(
        self, block: ConvBlock, norm: nn.Module | None, x: Tensor, memory_format: str
    ) -> dict[Form, float]:
        """Return the median time of every form.

        Args:
            block: In evaluation mode.
            norm: The one that is folded into it, None for none.
            x: Its input, in any memory format.
            memory_format: Of the model.
        """
        shape = shape_of_input(block, x)
        slot = getattr(block, "slot", None)
        slots = None if slot is None else tuple(slot.tolist())
        place = (block.stride, block.padding, block.padding_mode, block.dilation, slots, x.dtype, x.device)
        key = (shape, place, block.bias is None and norm is None, None if norm is None else repr(rest_of(norm)))
        if (memory_format, key) not in self._known:
            self._known[memory_format, key] = self._measure(block, norm, x, FORMATS[memory_format])
        return self._known[memory_format, key]

    def _measure(self, block: ConvBlock, norm: nn.Module | None, x: Tensor, memory: torch.memory_format) -> Any:
        rest = nn.Identity() if norm is None else rest_of(norm)
        x = laid_out(x, memory)
        with torch.inference_mode():

            def call(form: Form) -> Callable[[], Tensor]:
                lowered = lay_out_(lowered_with(block, form, norm), memory)
                return lambda: rest(lowered(x))

            calls = [call(form) for form in block.forms]
            timing = compare_latency(calls, rounds=self.rounds, warmup=1, budget=10.0, clock=clock())
        return {form: 1e3 * seconds for form, seconds in zip(block.forms, timing.seconds, strict=True)}
