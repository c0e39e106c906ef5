"""The largest values that options take, so that one digit too many does not take a machine down."""

from __future__ import annotations

import os

import typer

PER_CORE = 4
BATCH_SIZE = 16_384  # images
COMPARED = 100_000  # images
EPOCHS = 10_000
CLASSES = 100_000
SIDE = 16_384  # pixels
INPUT = 2**26  # numbers in one input: an image of 4,700 by 4,700 pixels, 256 MiB


def at_most_per_core(value: int | None) -> int | None:
    """Refuse more threads or processes than a few for each core.

    Args:
        value: What was asked for, None where nothing was.

    Raises:
        typer.BadParameter: It is too many.
    """
    cores = os.cpu_count() or 1
    if value is not None and value > PER_CORE * cores:
        core = "core" if cores == 1 else "cores"
        raise typer.BadParameter(
            f"{value} is too many for a machine of {cores} {core}; give at most {PER_CORE * cores}, {PER_CORE} per core"
        )
    return value


def at_most_32_bits(value: int) -> int:
    """Refuse a seed that numpy does not take.

    Args:
        value: The seed.

    Raises:
        typer.BadParameter: It is too large.
    """
    if value >= 2**32:
        raise typer.BadParameter(f"{value} is too large; expected at most {2**32 - 1}")
    return value
