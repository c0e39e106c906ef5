"""What the sections of the results page are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]
RUN_HEADER = ("images", "test images", "seed", "wall s", "processor s")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def run_cells(row: Facts) -> list[object]:
    """Return the cells under ``RUN_HEADER``, which end a row: the images of a compression, its seed and its cost."""
    return [
        row["calibration_images"],
        row["test_images"],
        row["seed"],
        f"{row['wall_seconds']:.0f}",
        f"{row['processor_seconds']:.0f}",
    ]
