"""The section on learning from the dense model on unlabelled images."""

from __future__ import annotations

from report_budget import TITLES
from report_table import RUN_HEADER, Facts, run_cells, table


def distillation(facts: Facts) -> str:
    """Return accuracy before and after learning from the dense model, without labels."""
    rows = [
        [
            TITLES[row["network"]],
            f"{100 * row['budget']:g}",
            f"{100 * row['macs_share']:.1f}",
            f"{row['top1_dense']:.2f}",
            f"{row['top1_before']:.2f}",
            row["passes"],
            f"{row['lr']:g}",
            f"{row['top1']:.2f}",
            f"{row['divergence_before']:.3f}",
            f"{row['divergence']:.3f}",
            row["kept"],
            *run_cells(row),
        ]
        for row in sorted(
            facts["variants"].values(), key=lambda row: (row["network"], row["budget"], row["passes"], row["seed"])
        )
    ]
    header = ["network", "budget, MACs %", "MACs %", "dense top-1 %", "fitted, top-1 %", "passes", "rate"]
    header += ["and distilled, top-1 %", "divergence before, nats", "after", "kept", *RUN_HEADER]
    return (
        f"{facts['data']}. Sizes from the budget (level `layer`), factors fitted to what layers see, then `--distill`. "
        "The divergence is that on the images held back. Seconds are those of the distillation alone, on a shared "
        "machine.\n\n" + table(header, rows)
    )
