"""The section of the results page on speed and accuracy of the same models."""

from __future__ import annotations

from report_table import Facts, table


def speed_accuracy(facts: Facts) -> str:
    """Return the section, with its picture."""
    parts = [
        f"{facts['method']} PyTorch {facts['machine']['torch']}, blocks lowered to plain convolutions in measured "
        "forms, norms folded. Accuracies are those after fine-tuning in the sections above; the models are built "
        "again without their weights. The detector's decomposed and hybrid models learnt from the dense one as well, "
        "the pruned one did not; its time is that of the network up to the raw scores and boxes of an image of "
        "320x256."
    ]
    for title, rows in facts["panels"].items():
        cells = [
            [
                row["name"],
                f"{100 * row['macs_share']:.1f}",
                f"{row['accuracy']:.2f}",
                f"{row['ms']:.1f}",
                f"{row['speed_up']:.2f}",
            ]
            for row in rows
        ]
        batch = facts["batches"][title]
        heading = ["model", "MACs %", "top-1 % or mAP", "ms per batch", "times as fast as dense"]
        parts.append(f"**{title}**, batch {batch}:\n\n{table(heading, cells)}")
    parts.append(
        "These networks are thin (16 to 192 channels): on a CPU their decomposed layers wait for memory more than they "
        "compute, and twice fewer MACs are not twice the speed.\n\n![Speed against accuracy](speed_accuracy.svg)"
    )
    return "\n\n".join(parts)
