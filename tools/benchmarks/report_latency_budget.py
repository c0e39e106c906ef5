"""The section on sizes found from a budget of milliseconds."""

from __future__ import annotations

from typing import Any

from report_table import Facts, table


def latency_budget(facts: Facts) -> str:
    """Return what budgets of milliseconds came to, by model."""
    rows = [
        [
            title,
            f"{100 * row['budget']:g}",
            f"{100 * row['predicted_share']:.1f}",
            f"{100 * row['measured_share']:.1f}",
            f"{100 * row['measured_again_share']:.1f}",
            f"{100 * _by_bench(row['bench'][0]['timings']):.1f}",
            f"{row['dense_milliseconds']:.1f}",
            row["plans"],
            f"{100 * row['macs_share']:.1f}",
            f"{100 * row['parameters_share']:.1f}",
            f"{row['wall_seconds']:.0f}",
            f"{row['processor_seconds']:.0f}",
        ]
        for title, row in facts["models"].items()
    ]
    header = ["model", "budget, ms %", "predicted %", "measured %", "measured again %", "norton bench %"]
    header += ["dense ms", "plans timed", "MACs %", "parameters %", "wall s", "processor s"]
    return (
        f"{facts['image']} pixels, one image, one thread of a shared machine ({facts['processor']}), torch "
        f"{facts['torch']}, processor time, medians of 25 turns; both models as delivered. Predicted: by the times of "
        "the layers alone; measured: by the job itself, of the model it wrote; measured again: by another preparation "
        "of both models, afterwards; `norton bench`: the delivered model, in forms chosen by size, over the dense one "
        "with its norms folded, each in its faster memory format. Other work ran beside it all the time, six processes "
        "for each core, which the spread between the three shows, most for the smallest model.\n\n"
        + table(header, rows)
    )


def _by_bench(timings: list[dict[str, Any]]) -> float:
    """Return the delivered model's time over the dense one's, its norms folded, each in its faster memory format."""
    best = {
        name: min(row["milliseconds"] for row in timings if row["model"] == name)
        for name in ("delivered", "dense, folded")
    }
    return best["delivered"] / best["dense, folded"]
