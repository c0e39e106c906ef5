"""The files of an artefact's directory: what they are called, and which of them are this package's own."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from norton_plugin.errors import ArtifactError

MANIFEST = "norton.json"
WEIGHTS = "model.safetensors"
LOCK = ".norton-lock"
# What saving makes on its way and nobody else does: names of fixed form, from a hash or 128 random bits.
_TEMPORARY = re.compile(r"\.norton-([0-9a-f]{64}\.safetensors|[0-9a-f]{32}\.tmp|lock)")


def pending_name(weights_hash: str) -> str:
    """Return the name under which weights wait for a manifest that names their hash."""
    return f".norton-{weights_hash}.safetensors"


def temporary_name() -> str:
    """Return a new name for what is being written."""
    return f".norton-{os.urandom(16).hex()}.tmp"


def is_temporary(name: str) -> bool:
    """Tell whether a file of this name was made by saving, and is no part of a finished artefact."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, or a link to one; a pipe or a device would hold up whoever reads it.

    Raises:
        ArtifactError: It cannot be opened, or is something else.
        FileNotFoundError: It is not there.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{shown(path)} cannot be read ({reason(error)}); an artefact needs it") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ArtifactError(f"{shown(path)} cannot be read: it is no regular file, as those of an artefact are")
    with open(number, "rb") as file:
        yield file


def is_same_file(file: BinaryIO, path: Path) -> bool:
    """Tell whether a path still leads to an open file; while it is open, no other file can be taken for it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def reason(error: Exception) -> str:
    """Return what an error of the file system says, without the path."""
    return getattr(error, "strerror", None) or str(error)


def shown(path: str | Path) -> str:
    """Return a path as it can be printed: a NUL or another control character is written out."""
    text = str(path)
    return text if text.isprintable() else repr(text)
