"""Files that are there complete, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from norton_plugin.artifact.folder import reason, shown, temporary_name
from norton_plugin.errors import ExportError


@contextmanager
def placed_whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder inside of another one; its files move up when the block ends, and are gone where it fails.

    Each file takes its place by one rename, so that no reader sees half of it, and one that was there stays until then.

    Args:
        folder: Where the files will be.

    Raises:
        ExportError: Something cannot be written there.
    """
    work = folder / temporary_name()
    try:
        work.mkdir()
        try:
            yield work
            _move_up(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"nothing was written to {shown(folder)}: {reason(error)}") from error


def _move_up(work: Path, folder: Path) -> None:
    files = sorted(work.iterdir())
    for file in files:
        if (folder / file.name).is_dir():
            raise ExportError(f"{shown(folder / file.name)} is a folder; give another name")
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    done: list[Path] = []
    try:
        for file in files:
            os.replace(file, folder / file.name)
            done.append(folder / file.name)
    except BaseException:
        for path in done:
            with suppress(OSError):
                path.unlink()
        raise
