"""The section on sizes found from a budget of milliseconds."""

from __future__ import annotations

from report_budget_speed import RUNTIMES
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
            *(_speed(row["speed"]["runtimes"].get(runtime)) for runtime in RUNTIMES),
            f"{row['dense_milliseconds']:.1f}",
            row["plans"],
            f"{100 * row['macs_share']:.1f}",
            f"{100 * row['parameters_share']:.1f}",
            f"{row['wall_seconds']:.0f}",
            f"{row['processor_seconds']:.0f}",
        ]
        for title, row in facts["models"].items()
    ]
    header = ["model", "budget, ms %", "predicted %", "measured %", "measured again %", *RUNTIMES]
    header += ["dense ms", "plans timed", "MACs %", "parameters %", "wall s", "processor s"]
    return (
        f"{facts['image']} pixels, one image, one thread of a shared machine ({facts['processor']}), torch "
        f"{facts['torch']}, processor time, medians of 25 turns; both models as delivered. Predicted: by the times of "
        "the layers alone; measured: by the job itself, of the model it wrote; measured again: by another preparation "
        "of both models, afterwards. PyTorch, onnxruntime, OpenVINO: how many times as fast as the dense model in the "
        "same runtime by `norton bench` (forms measured in PyTorch, both models' norms folded), and the efficiency: "
        "that over the ratio of MACs. Other work ran beside it.\n\n" + table(header, rows)
    )


def _speed(found: Facts | None) -> str:
    return "-" if found is None else f"{found['speed_up']:.2f}x, {found['efficiency']:.2f}"
