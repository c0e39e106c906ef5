"""One writer at a time in a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from norton_plugin.artifact.folder import LOCK, is_same_file, shown
from norton_plugin.errors import ArtifactError

# Seconds: longer than any save takes, shorter than a person waits for one that hangs.
PATIENCE = 600.0
_PAUSE = 0.02
_TRIES = 100
# What file systems answer that know no locks (some clusters' and network drives).
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def sole_writer(directory: Path, *, patience: float | None = None) -> Iterator[bool]:
    """Wait until nobody else writes to a directory, which is made where it is absent.

    The system gives the lock up when its holder ends, however that comes about. The file stays behind then, is empty,
    and is taken over by the next writer.

    Args:
        directory: Where to write.
        patience: Seconds to wait; 0 for what takes long, ``PATIENCE`` by default.

    Yields:
        Whether nobody else can write now; False where the file system knows no locks.

    Raises:
        ArtifactError: Somebody has been writing there for so long.
        OSError: The directory cannot be made or written to.
    """
    path = directory / LOCK
    patience = PATIENCE if patience is None else patience
    deadline = time.monotonic() + patience
    while True:
        with _open(path) as file:
            sole = _lock(file, path)
            if sole is not None:
                try:
                    yield sole
                finally:
                    _remove(file, path)
                return
        if time.monotonic() >= deadline:
            writes, since = ("has been writing", f" for {patience:g} s") if patience else ("is writing", "")
            raise ArtifactError(
                f"another process {writes} to {shown(directory)}{since}; wait until it is done, or write elsewhere"
            )
        time.sleep(_PAUSE)


def _open(path: Path) -> BinaryIO:
    """Open the lock's file, in a directory that another writer may remove meanwhile, when it could not fill it."""
    for _ in range(_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return open(path, "ab", opener=_without_links)
    raise ArtifactError(f"{shown(path.parent)} vanishes whenever it is made")


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _lock(file: BinaryIO, path: Path) -> bool | None:
    """Tell whether the file is locked now (False: it cannot be); None where somebody else holds or has removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in _UNKNOWN:
            return False
        raise
    return True if is_same_file(file, path) else None


def _remove(file: BinaryIO, path: Path) -> None:
    with suppress(OSError):
        if os.fstat(file.fileno()).st_size == 0:  # anything else is no file of ours
            path.unlink()
