"""Errors raised on purpose by this package.

Every message says what came, what was expected and what to do about it.
"""

from __future__ import annotations

import traceback
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from norton_plugin.reasons import Cause


class NortonError(Exception):
    """Base class: catch it to catch everything this package raises on purpose."""


class RecipeError(NortonError, ValueError):
    """A setting is out of its range, unknown, or contradicts another one."""


class DecompositionError(NortonError, ValueError):
    """A weight or a rank cannot be decomposed (NaN values, wrong shape, rank below one)."""


class SurgeryError(NortonError, RuntimeError):
    """A model cannot be changed as asked; it is left as it was."""


class TracingError(SurgeryError):
    """Which channels belong together cannot be found out: the model does not run, or not within the time allowed.

    Args:
        cause: Why; its text is the message.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


class ArtifactError(NortonError, RuntimeError):
    """An artefact cannot be written, is damaged, or does not belong to the model at hand."""


class ExportError(NortonError, RuntimeError):
    """A model cannot be written for another runtime, or the file does not compute what the model does."""


class SourceError(NortonError, ValueError):
    """A model or data source cannot be found, built or read."""


class MissingExtraError(NortonError, ImportError):
    """An optional dependency is absent; the message names the pip command that installs it."""


def first_line_of(error: BaseException) -> str:
    """Return the first line of an error's message, see ``message_of``."""
    return message_of(error).partition("\n")[0]


def message_of(error: BaseException) -> str:
    """Return an error's message; where it has none, such as that of a bare ``assert``, the line that raised it."""
    message = str(error).strip()
    frames = traceback.extract_tb(error.__traceback__)
    if message or not frames:
        return message
    last = frames[-1]
    return f"no message; raised by `{last.line}` in {last.name}, line {last.lineno} of {PurePath(last.filename).name}"
