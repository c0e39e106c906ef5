"""The section of the results page with pictures of models before and after compression."""

from __future__ import annotations

from report_table import Facts, table


def pictures(facts: Facts) -> str:
    """Return where a classifier looks and what a detector finds, dense and compressed."""
    found = facts["variants"]
    parts = []
    if "cam" in found:
        parts.append(_cam(found["cam"]))
    if "compare" in found:
        parts.append(_compare(found["compare"]))
    return "\n\n".join(parts)


def _cam(row: Facts) -> str:
    rows = [
        [f"{100 * share:.1f}", f"{mean:.3f}", f"{same} of {row['images']}"]
        for share, mean, same in zip(row["macs_shares"], row["mean_correlations"], row["same_class"], strict=True)
    ]
    header = ["MACs %", "correlation with the dense model's map, mean", "images with the same class"]
    return (
        f"**Where a classifier looks** (`norton cam`). {row['model']}; fitted to unlabelled images, not trained again. "
        f"Grad-CAM at `{row['layer']}`, of the class that the dense model sees.\n\n"
        f"{table(header, rows)}\n\n![Grad-CAM maps of the dense and of three compressed models]({row['picture']})"
    )


def _compare(row: Facts) -> str:
    counts = ", ".join(f"{dense} / {compressed}" for dense, compressed in row["objects"])
    return (
        f"**What a detector finds** (`norton compare`). {row['model']}; {100 * row['macs_share']:.1f} % of the MACs. "
        f"Objects, dense / compressed: {counts}.\n\n![Blood cells found by both]({row['picture']})"
    )
