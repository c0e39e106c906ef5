"""What a classifier has to return, and what to do where it returns something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from norton_plugin.errors import SourceError


def class_scores(output: Any, *, of: str, expected: str = "a tensor of shape (1, classes)") -> Tensor:
    """Return the output of a classifier, scores of classes (1, classes).

    Args:
        output: Whatever the model returned for one image.
        of: The model, in words for a message.
        expected: What else would do, in words for the message.

    Raises:
        SourceError: It is something else; where it holds such scores, the message says how to give them alone.
    """
    if _is_scores(output):
        return output
    if isinstance(output, Tensor):
        raise SourceError(f"{of} returns shape {tuple(output.shape)}; expected {expected}")
    where = next((place for place, value in _parts(output).items() if _is_scores(value)), None)
    remedy = (
        ""
        if where is None
        else (
            f"; give a source of your own, python:MODULE:FUNCTION, whose model returns output[{where!r}] alone "
            "(docs/transformers.md shows one)"
        )
    )
    raise SourceError(f"{of} returns {_in_words(output)}; expected {expected}{remedy}")


def _is_scores(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


def _parts(output: Any) -> dict[Any, Any]:
    """Return what a mapping, or a tuple or list, holds by key or place; ``logits`` first."""
    if isinstance(output, Mapping):
        return dict(sorted(output.items(), key=lambda item: item[0] != "logits"))
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {}


def _in_words(output: Any) -> str:
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"{name} with {', '.join(map(repr, output)) or 'nothing in it'}"
    return f"{name} of {len(output)}" if isinstance(output, tuple | list) else name
