"""The section on trained detectors as they are delivered: accuracy and time of the same weights."""

from __future__ import annotations

from report_table import Facts, table

RUNTIMES = ("PyTorch", "onnxruntime", "OpenVINO")


def bccd_speed(facts: Facts) -> str:
    """Return mAP and times of every variant, with the picture of both networks."""
    rows = [
        [
            name,
            f"{100 * row['macs_share']:.1f}",
            f"{row['map_after_surgery']:.1f}",
            f"{row['map']:.1f}",
            row["seeds"],
            *(speed_cell(row["runtimes"].get(runtime)) for runtime in RUNTIMES),
        ]
        for name, row in facts["variants"].items()
    ]
    header = ["variant", "MACs %", "mAP after surgery", "mAP fine-tuned", "seeds", *RUNTIMES]
    return (
        f"The detectors of the section before (dense: {facts['dense_map']:.1f} mAP as trained), each by `norton "
        "deploy` from its config and checkpoint, then by `norton bench`: one image of 320x256, one thread; ms "
        "dense to ms delivered, and how many times as fast. PyTorch: up to the boxes, forms as measured by deploy, the "
        "dense detector's norms folded too; files of the other runtimes end at the tensors of the head. The dense "
        "network is thin (24 to 192 channels).\n\n" + table(header, rows) + "\n\n![Accuracy against speed of models "
        "compressed to budgets](budget_speed.svg)"
    )


def speed_cell(found: Facts | None) -> str:
    """Return times and speed-up in one runtime."""
    if found is None:
        return "-"
    return f"{found['dense_ms']:.1f} to {found['ms']:.1f}, {found['speed_up']:.2f}x"
