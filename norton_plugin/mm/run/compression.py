"""Compressing a Runner's model: on a copy, with as much of it traced as can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.errors import SurgeryError, TracingError
from norton_plugin.insight import note_on_forms
from norton_plugin.mm.run.tracing import Trace, traces_of
from norton_plugin.mm.runner.migration import plain_instances
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.modules.running import calibrated_by, counted_by, distilled_by
from norton_plugin.pipeline import CompressionReport, StepLog, compress
from norton_plugin.recipe import Recipe


def compressed_copy(
    model: nn.Module,
    example: Tensor,
    recipe: Recipe,
    *,
    logger: logging.Logger,
    outputs: Sequence[str] = (),
    images: Sequence[Tensor] | None = None,
    log: StepLog | None = None,
) -> tuple[nn.Module, CompressionReport, str]:
    """Compress a copy; where the whole cannot be traced, less of it is.

    Args:
        model: Unwrapped; not changed, nor is any random state.
        example: (1, C, H, W) on its device.
        recipe: What to do.
        logger: Told what cannot be traced.
        outputs: Layers whose outputs keep their width, as the model's own do.
        images: Unlabelled batches (B, C, H, W) for what the recipe does on images; None for none.
        log: Told each step as it begins, and how far it is.

    Returns:
        The compressed copy, the report, and what was traced in words.

    Raises:
        SurgeryError: Nothing can be traced, or nothing is left to compress.
    """
    with preserved_random_state(), plain_instances(model):
        traces = traces_of(model, example)
        for position, (trace, covered) in enumerate(traces, 1):
            try:
                run = _WithOutputs(trace, outputs)
                regions = f" {words}" if (words := getattr(trace, "regions", "")) else ""
                logger.info("NORTON: MACs are those of one image of %s%s", _size(example), regions)
                told: dict[str, Any] = {} if log is None else {"on_step": log, "on_detail": log.detail}
                compressed, report = compress(model, example, recipe, calibration=images, forward_fn=run, **told)
                note = note_on_forms(compressed, example, report, forward_fn=run)
                if note is not None:
                    logger.info("NORTON: %s", note)
                return compressed, report, covered
            except TracingError as error:
                if position == len(traces):
                    raise
                logger.warning("NORTON: %s; tracing less", error)
    raise SurgeryError("nothing of the model can be traced")


def _size(example: Tensor) -> str:
    return " x ".join(str(size) for size in example.shape[1:])


class _WithOutputs:
    """A trace, with what the named layers return beside what it returns."""

    def __init__(self, trace: Trace, names: Sequence[str]) -> None:
        self._trace, self._names = trace, names
        self.counted, self.calibrated, self.distilled = counted_by(trace), calibrated_by(trace), distilled_by(trace)

    def __call__(self, model: nn.Module, example: Any) -> Any:
        if not self._names:
            return self._trace(model, example)
        seen: list[Any] = []
        layers = [model.get_submodule(name) for name in self._names]
        handles = [layer.register_forward_hook(lambda _, args, out: seen.append(out)) for layer in layers]
        try:
            return [self._trace(model, example), seen]
        finally:
            for handle in handles:
                handle.remove()


def frozen_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the layers whose weights need no gradient, by all their names: nothing could repair them.

    Args:
        model: Gives the flags. Norms do not count: they follow the layers around them.
    """
    kinds = (nn.modules.conv._ConvNd, nn.Linear, ConvBlock, CPDLinear)
    return tuple(
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, kinds) and not any(p.requires_grad for p in module.parameters())
    )


def without(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """Return the recipe with further layers excluded."""
    if not names:
        return recipe
    data = recipe.to_dict()
    data["scope"]["exclude"] = [*data["scope"]["exclude"], *names]
    return Recipe.from_dict(data)
