"""The section on what each step of compression on unlabelled images gives."""

from __future__ import annotations

from report_budget import compressed_cells
from report_table import Facts, table

_PARTS = {
    "steps": "Each step left out alone, layer level. With every step: sizes from measured sensitivities, layers fitted "
    "one after the other to targets that repair the stream, norms corrected where that helps, two passes of "
    "distillation.",
    "levels": "Sizes from the budget and the fit at every level, no distillation.",
    "baselines": "Pruning alone: the same inner channels removed (smallest norms, the same share everywhere), and what "
    "is done for the others. All but the last with BatchNorm statistics re-estimated.",
}


def ablation(facts: Facts) -> str:
    """Return accuracy without each step, at every level, and of published baselines."""
    parts = [f"{facts['data']}. Seconds are those of the whole compression on a shared machine."]
    for part, text in _PARTS.items():
        rows = [row for row in facts["variants"].values() if row["part"] == part]
        if rows:
            parts += [text, _table(rows)]
    return "\n\n".join(parts)


def _table(rows: list[Facts]) -> str:
    rows = sorted(rows, key=lambda row: (row["network"], -row["budget"], -row["top1"]))
    cells = [
        [
            *compressed_cells(row),
            row["calibration_images"],
            row["test_images"],
            row["seed"],
            f"{row['processor_seconds']:.0f}",
        ]
        for row in rows
    ]
    header = [
        "network",
        "budget, MACs %",
        "what is done",
        "MACs %",
        "parameters %",
        "dense top-1 %",
        "top-1 %",
        "images",
    ]
    return table([*header, "test images", "seed", "processor s"], cells)
