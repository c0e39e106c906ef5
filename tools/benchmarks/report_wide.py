"""The sections on a wide classifier, and on what a budget and a fit cost on large models."""

from __future__ import annotations

from report_budget_speed import RUNTIMES, speed_cell
from report_table import RUN_HEADER, Facts, run_cells, table

_STEPS = {
    "data-free": "sizes without images, norms re-estimated",
    "fitted": "sizes and layers fitted to images",
    "both": "sizes, channels and layers fitted to images",
    "distilled": "fitted, and two passes of distillation",
}


_OF = {"macs": "MACs", "latency": "ms"}


def wide(facts: Facts) -> str:
    """Return accuracy and speed of a wide classifier at each budget and step, without labels."""
    rows = [
        [
            row["network"],
            f"{100 * row['budget']:g} % of the {_OF[_of(row)]}",
            _what(row),
            f"{100 * row['macs_share']:.1f}",
            f"{100 * row['parameters_share']:.1f}",
            f"{row['top1']:.2f}",
            f"{row['top1'] - row['top1_dense']:+.2f}",
            *(speed_cell(row.get("speed", {}).get("runtimes", {}).get(runtime)) for runtime in RUNTIMES),
            *run_cells(row),
        ]
        for row in sorted(facts["variants"].values(), key=_place)
    ]
    header = ["network", "budget", "what is done", "MACs %", "parameters %", "top-1 %", "difference"]
    header += [*RUNTIMES, *RUN_HEADER]
    training = facts["training"]
    dense = next(iter(facts["variants"].values()))["top1_dense"]
    return (
        f"{facts['data']}. Trained for {training['epochs']} epochs by AdamW (one cycle up to {training['lr']:g}) for "
        f"this table, so not as good as it could be ({dense:.2f} %): what counts is the difference. Level `auto`, no "
        "label, no fine-tuning. Times are those of one image on one thread, as delivered (forms measured in PyTorch, "
        "norms folded, the dense model's too): ms dense to ms compressed, and how many times as fast. Seconds are "
        "those of the whole compression on a shared machine.\n\n" + table(header, rows)
    )


def _of(row: Facts) -> str:
    """Return what the budget was a share of; rows of before there was a choice are of MACs."""
    return str(row.get("of", "macs"))


def _place(row: Facts) -> tuple[str, float, int, int]:
    """Return what rows are sorted by: the kind of budget, the largest budget first."""
    return _of(row), -row["budget"], list(_STEPS).index(row["step"]), row["seed"]


def _what(row: Facts) -> str:
    """Return what was done in words, and which phases were kept where several were tried."""
    return _STEPS[row["step"]] + (f"; kept: {row['phases']}" if row["step"] == "both" else "")


def calibration_cost(facts: Facts) -> str:
    """Return time and memory of whole commands."""
    rows = [
        [
            row["model"],
            f"{100 * row['budget']:g}",
            f"{100 * row['macs_share']:.1f}",
            row["images"],
            row["threads"],
            row.get("memory") or "-",
            row["layers_fitted"],
            f"{row['divergence']['plain']:.3g} to {min(row['divergence'].values()):.3g}",
            f"{row['wall_seconds']:.0f}",
            f"{row['processor_seconds']:.0f}",
            f"{row['fit_seconds']:.0f}",
            f"{row['peak_gib']:.1f}",
        ]
        for row in facts["variants"].values()
    ]
    header = ["model", "budget, MACs %", "MACs %", "images", "threads", "--memory", "layers fitted", "divergence, nats"]
    header += ["wall s", "processor s", "of it the fit, wall s", "peak memory, GiB"]
    return (
        "`norton compress MODEL --budget macs=... --data FOLDER --calibrate`, the whole process: model, images, "
        "moments, sensitivities, plan, surgery with its checks, fit, artefact. Random weights, "
        "224 pixels, a shared machine. The row without a limit is of before what passes hold could lie on disk, and "
        "before passes with gradients ran in parts."
        "\n\n" + table(header, rows)
    )
