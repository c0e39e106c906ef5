"""Files of JSON beside an artefact: what was measured or chosen once, to be given again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from norton_plugin.artifact import bounded_json
from norton_plugin.errors import RecipeError


def read_json(path: str | Path, where: str) -> Any:
    """Read a file of JSON that may come from anyone; what it holds is for the caller to check.

    Args:
        path: Of the file.
        where: What it is, in words, for the message.

    Raises:
        RecipeError: It cannot be read, or is no JSON, or larger than any such file.
    """
    try:
        with Path(path).open("rb") as file:
            return bounded_json.parse(file.read(bounded_json.MOST_BYTES + 1))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where} cannot be read ({error})") from error


def inside(path: str | Path, name: str) -> Path:
    """Return the file of this name in a directory, or the path itself where it is none."""
    return Path(path) / name if Path(path).is_dir() else Path(path)
