"""Writing a file that goes with an artefact, such as a page or a picture: complete, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from norton_plugin.artifact.folder import reason, shown, temporary_name
from norton_plugin.errors import ArtifactError


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write a file in one step; what was there before stands until the new one is complete.

    Args:
        path: The file; its folder is made where it is absent.
        data: All of it.

    Returns:
        The path.

    Raises:
        ArtifactError: It cannot be written; what was there before is untouched.
    """
    target = Path(path)
    draft = target.with_name(temporary_name())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{shown(target)} cannot be written ({reason(error)}); what was there before is untouched"
        ) from error
    return target
