"""Options that several commands take, and how their text is read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from norton_plugin.cli import limits
from norton_plugin.cli.paths import artefact_folder, existing_file, read_path
from norton_plugin.errors import RecipeError, SourceError

_MODEL = "Model"
_SIZE = re.compile(r"[0-9]{1,9}(x[0-9]{1,9}){0,3}", re.IGNORECASE)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="timm:NAME, torchvision:NAME, mmdet:CONFIG, cifar:NAME, python:package.module:function, or an artefact.",
        show_default=False,
    ),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Load the published weights.", rich_help_panel=_MODEL)]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        parser=read_path,
        callback=existing_file,
        metavar="FILE",
        help="Load weights from a .safetensors, .pt or .pth file.",
        rich_help_panel=_MODEL,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        "--num-classes", max=limits.CLASSES, metavar="N", help="Outputs of the classifier.", rich_help_panel=_MODEL
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="SIZE",
        help="One side in pixels, HxW, CxHxW, such as 3x32x32, or CxDxHxW of clips and volumes.",
        rich_help_panel=_MODEL,
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the Python function that an artefact names, where its model comes from one.",
        rich_help_panel=_MODEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, callback=limits.at_most_32_bits, metavar="N", help="Of all random choices."),
]
OutputDirectory = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        parser=read_path,
        callback=artefact_folder,
        metavar="DIR",
        help="Directory to write; a previous artefact is replaced.",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, max=limits.BATCH_SIZE, metavar="N", help="Images per batch.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", min=0, callback=limits.at_most_per_core, metavar="N", help="Processes or threads that load images."
    ),
]


def parse_input_size(text: str | None) -> tuple[int, ...] | int | None:
    """Read ``224``, ``224x320`` or ``3x224x320``.

    Raises:
        SourceError: The text is none of these, or the input would be larger than any memory takes.
    """
    if text is None:
        return None
    if not _SIZE.fullmatch(text):
        expected = "one side, HxW, CxHxW or (clips and volumes) CxDxHxW in pixels, such as 3x32x32"
        raise SourceError(f"--input-size is {text!r}; expected {expected}")
    sides = tuple(int(part) for part in text.lower().split("x"))
    numbers = 3 * sides[0] ** 2 if len(sides) == 1 else math.prod(sides)
    if max(sides) > limits.SIDE or numbers > limits.INPUT:
        raise SourceError(
            f"--input-size is {text!r}; expected sides of at most {limits.SIDE} pixels and at most {limits.INPUT} "
            "numbers in all"
        )
    return sides[0] if len(sides) == 1 else sides


def parse_rank(text: str) -> int | str | None:
    """Read a rank: a whole number, ``auto`` or ``none``; anything else is left for the recipe to refuse."""
    return None if text == "none" else parse_whole(text)


def parse_whole(text: str) -> int | str:
    """Read a whole number; what is none is left for the recipe to refuse."""
    try:
        return int(text)
    except ValueError:
        return text


def parse_setting(text: str) -> int | float | str | None:
    """Read a value of a recipe: a number, ``none``, or a word."""
    value = parse_rank(text)
    return parse_number(value) if isinstance(value, str) else value


def parse_number(text: str) -> float | str:
    """Read a number; what is no number is left for the recipe to refuse."""
    try:
        return float(text)
    except ValueError:
        return text


def split_pair(option: str, text: str) -> tuple[str, str]:
    """Split ``PATTERN=VALUE`` at its last equals sign (a regular expression may hold others).

    Raises:
        RecipeError: There is no equals sign, or nothing on one side of it.
    """
    pattern, _, value = text.rpartition("=")
    if not pattern or not value:
        raise RecipeError(f"{option} is {text!r}; expected PATTERN=VALUE, such as 'layer1.*=2'")
    return pattern, value
