"""Tracing a model by ``torch.export``, with the axes that stay open."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from norton_plugin.errors import ExportError
from norton_plugin.export.network import ExportedNetwork
from norton_plugin.export.refusal import followed, quiet, refused_trace

BATCH, HEIGHT, WIDTH = 0, -2, -1
AXES = {BATCH: "batch", HEIGHT: "height", WIDTH: "width"}
_STEP = 32  # pixels: every common network halves its maps five times


def open_axes(*, batch: int | None, dynamic_size: bool) -> tuple[int, ...]:
    """Return which axes of the inputs stay open."""
    return (*((BATCH,) if batch is None else ()), *((HEIGHT, WIDTH) if dynamic_size else ()))


def trace_program(network: ExportedNetwork, inputs: tuple[Tensor, ...], *, axes: tuple[int, ...]) -> ExportedProgram:
    """Trace a network.

    Args:
        network: In evaluation mode.
        inputs: Of the shape that the axes which do not stay open have.
        axes: Of :data:`AXES`; those that stay open.

    Raises:
        ExportError: The exporter refuses it.
    """
    free = tuple({axis % tensor.dim(): Dim.DYNAMIC for axis in axes} for tensor in inputs)
    with quiet(), torch.no_grad(), followed(network.model) as running:
        try:
            return torch.export.export(network, inputs, dynamic_shapes=(free,), strict=False)
        except Exception as error:  # whatever the model's own code raises under the tracer, too
            raise refused_trace(error, running, network.model) from error


def resized(
    inputs: tuple[Tensor, ...], *, batch: int, larger: tuple[int, int] = (0, 0), seed: int
) -> tuple[Tensor, ...]:
    """Return random inputs like others.

    Args:
        inputs: Examples, (B, C, H, W) where images get larger.
        batch: Images.
        larger: Steps of 32 pixels that are added to height and width.
        seed: Of the values; integers are drawn from the example.

    Raises:
        ExportError: An input has no axis for the batch.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for example in inputs:
        if example.dim() < 2:
            raise ExportError(f"an input has shape {tuple(example.shape)}; expected a batch axis and others")
        shape = [batch, *example.shape[1:]]
        if any(larger):
            shape[HEIGHT] += _STEP * larger[0]
            shape[WIDTH] += _STEP * larger[1]
        if example.is_floating_point():
            found.append(torch.randn(shape, generator=generator).to(example))
        else:
            picks = torch.randint(example.numel(), shape, generator=generator)
            found.append(example.flatten()[picks])
    return tuple(found)
