"""The section of the results page on full-size detectors."""

from __future__ import annotations

from report_table import Facts, table

_HEADER = [
    "detector",
    "image",
    "status",
    "seconds",
    "verifying",
    "processor s",
    "peak GiB",
    "MACs, G",
    "parameters, M",
    "convs decomposed",
    "groups pruned",
    "largest error",
    "MACs down by part, %",
    "left",
]


_LEVELS_HEADER = [
    "detector, filter level / layer level",
    "processor s",
    "peak GiB",
    "MACs, G",
    "parameters, M",
    "mean NMSE",
    "status",
]

_READING = """
**Seconds** are those of counting, decomposing, tracing and pruning by the clock, **verifying** comes on top, and
building the model is in neither. Other work on the machine is in both; the **processor** seconds of the two together
come closer to what an idle machine needs. **Peak** is that of the whole process. MACs are those of the image given,
with 1000 regions in the box heads and 100 in the mask heads of two-stage detectors. Weights are random (nothing is
downloaded), so this says what a detector costs to compress, not how accurate it is.
""".strip().replace("\n", " ")


def detectors(facts: Facts) -> str:
    """Full-size detectors of mmdet: time, memory and what was reached."""
    machine, recipe = facts["machine"], facts["recipe"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"80 classes; rank {recipe['rank']} where it saves MACs, {100 * recipe['keep']:.0f} % of the channels kept, "
        f"verified; {versions}. Each model in a process of its own, {machine['threads']} thread(s) on a shared machine "
        f"with {machine['cores']} cores. {_READING}\n\n"
        + table(_HEADER, [_row(name, row) for name, row in facts["models"].items()])
        + _levels(facts)
    )


def _levels(facts: Facts) -> str:
    """Return the same recipe at the layer level, beside the filter level of the table above."""
    pairs = [
        (name, facts["models"][name], row)
        for name, row in facts.get("models_layer_level", {}).items()
        if "mean_nmse" in row and "mean_nmse" in facts["models"].get(name, {})
    ]
    if not pairs:
        return ""
    rows = [_compared(name, before, after) for name, before, after in pairs]
    times = [after["processor_seconds"] / before["processor_seconds"] for _, before, after in pairs]
    memory = [after["peak_gib"] / before["peak_gib"] for _, before, after in pairs]
    return (
        "\n\nThe same recipe with components shared by all filters of a layer (`level: layer`), at no more MACs per "
        f"layer. Compression takes {min(times):.2f} to {max(times):.2f} times the processor time of the filter level "
        f"and {min(memory):.2f} to {max(memory):.2f} times its memory. The error is the NMSE of a layer's weight, "
        f"averaged over layers; weights are random here, so it is larger than a trained detector's.\n\n"
        + table(_LEVELS_HEADER, rows)
    )


def _compared(name: str, before: Facts, after: Facts) -> list[object]:
    def pair(key: str, unit: float = 1.0, digits: int = 1) -> str:
        return f"{before[key] / unit:.{digits}f} / {after[key] / unit:.{digits}f}"

    return [
        name,
        pair("processor_seconds"),
        pair("peak_gib", digits=2),
        pair("macs_after", 1e9),
        pair("parameters_after", 1e6),
        pair("mean_nmse", digits=3),
        after["status"],
    ]


def _row(name: str, row: Facts) -> list[object]:
    if "macs_before" not in row:
        return [name, row["size"], row["status"], *["-"] * (len(_HEADER) - 4), "; ".join(row["reasons"])]
    changes = [f"{part} {_down(entry):.0f}" for part, entry in row["parts"].items() if entry["macs_before"]]
    return [
        name,
        row["size"],
        row["status"],
        row["seconds"],
        row["verify_seconds"],
        row["processor_seconds"],
        f"{row['peak_gib']:.2f}",
        f"{row['macs_before'] / 1e9:.1f} to {row['macs_after'] / 1e9:.1f}",
        f"{row['parameters_before'] / 1e6:.1f} to {row['parameters_after'] / 1e6:.1f}",
        "/".join(map(str, row["decomposed"])),
        "/".join(map(str, row["pruned"])),
        "-" if row["largest_error"] is None else f"{row['largest_error']:.0e}",
        ", ".join(changes),
        "; ".join(row["reasons"]),
    ]


def _down(entry: Facts) -> float:
    return 100 * (1 - entry["macs_after"] / entry["macs_before"])
