"""The sections on a wide classifier, and on what a budget and a fit cost on large models."""

from __future__ import annotations

from report_budget import compressed_cells
from report_table import RUN_HEADER, Facts, run_cells, table

_STEPS = {
    "data-free": "sizes without images, norms re-estimated",
    "fitted": "sizes and layers fitted to images",
    "distilled": "fitted, and two passes of distillation",
}


def wide(facts: Facts) -> str:
    """Return accuracy of a wide classifier at each budget and step, without labels."""
    order = list(_STEPS)
    rows = [
        [
            *compressed_cells({**row, "variant": _STEPS[row["step"]]}),
            f"{row['top1'] - row['top1_dense']:+.2f}",
            *run_cells(row),
        ]
        for row in sorted(
            facts["variants"].values(), key=lambda row: (-row["budget"], order.index(row["step"]), row["seed"])
        )
    ]
    header = ["network", "budget, MACs %", "what is done", "MACs %", "parameters %", "dense top-1 %", "top-1 %"]
    header += ["difference", *RUN_HEADER]
    training = facts["training"]
    return (
        f"{facts['data']}. Trained for {training['epochs']} epochs by AdamW (one cycle up to {training['lr']:g}) for "
        "this table, so not as good as it could be: what counts is the difference. Level `auto`, no label, no "
        "fine-tuning. Seconds are those of the whole compression on a shared machine.\n\n" + table(header, rows)
    )


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
