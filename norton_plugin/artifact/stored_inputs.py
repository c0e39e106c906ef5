"""What an artefact says about the images of its model, checked before a tensor of that size is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from norton_plugin.artifact.manifest import Manifest
from norton_plugin.errors import ArtifactError
from norton_plugin.zoo import Preprocessing

MOST_INPUTS = 16
LARGEST_SIDE = 2**14
# All inputs together: 512 MiB of numbers, a hundred times the images of the largest known models.
MOST_NUMBERS = 2**27
_FILTERS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


def stored_inputs(manifest: Manifest, directory: Path) -> tuple[Preprocessing, int]:
    """Read what ``save_model`` wrote about a model's inputs.

    Args:
        manifest: Of an artefact from anyone.
        directory: Of it, for messages.

    Returns:
        Size and normalisation of its images, and the number of input tensors.

    Raises:
        ArtifactError: It is absent, or no model takes such images.
    """
    stored = manifest.extra.get("preprocessing")
    if not isinstance(stored, dict):
        raise ArtifactError(
            f"{directory} does not say what its images look like: artefacts of this command do, and those that were "
            'saved in Python with source=load_source("..."); save it so'
        )
    names = {field.name for field in fields(Preprocessing)}
    if set(stored) != names:
        raise _wrong(directory, "preprocessing", sorted(stored), f"the keys {', '.join(sorted(names))}")
    for name, (fits, expected) in _FIELDS.items():
        if not fits(stored[name]):
            raise _wrong(directory, name, stored[name], expected)
    inputs = manifest.extra.get("inputs", 1)
    if type(inputs) is not int or not 1 <= inputs <= MOST_INPUTS:
        raise _wrong(directory, "inputs", inputs, f"from 1 to {MOST_INPUTS}")
    numbers = inputs * math.prod(stored["input_size"])
    if numbers > MOST_NUMBERS:
        raise _wrong(directory, "input_size", stored["input_size"], f"at most {MOST_NUMBERS} numbers in all inputs")
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
    return Preprocessing(**values), inputs


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and 3 <= len(value) <= 4 and all(_is_side(side) for side in value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_SIDE


def _numbers(least: float, most: float) -> Callable[[Any], bool]:
    def fit(value: Any) -> bool:
        return isinstance(value, list) and 1 <= len(value) <= 64 and all(_is_number(v, least, most) for v in value)

    return fit


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "input_size": (_is_size, f"(C, H, W) or (C, T, H, W), each from 1 to {LARGEST_SIDE}"),
    "mean": (_numbers(-1e6, 1e6), "a number per channel"),
    "std": (_numbers(1e-6, 1e6), "a positive number per channel"),
    "interpolation": (lambda value: isinstance(value, str) and value in _FILTERS, f"one of {', '.join(_FILTERS)}"),
    "crop_pct": (lambda value: _is_number(value, 0.05, 2.0), "a share from 0.05 to 2"),
}


def _wrong(directory: Path, name: str, value: Any, expected: str) -> ArtifactError:
    shown = str(value)[:80]
    return ArtifactError(
        f"{name} in {directory} is {shown!r}, expected {expected}: it was edited or damaged; save the artefact again"
    )
