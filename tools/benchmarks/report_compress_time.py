"""The section of the results page on how long the whole of a compression takes, level by level."""

from __future__ import annotations

from report_table import Facts, table

_HEADER = [
    "model",
    "version",
    "MACs left, filter / layer",
    "filter, processor s",
    "layer, processor s",
    "layer / filter",
    "mean NMSE, filter / layer",
]


def compress_time(facts: Facts) -> str:
    """Whole compressions at the filter and the layer level, of this version and of earlier ones."""
    rows = [_row(name, label, row) for name, labels in facts["models"].items() for label, row in labels.items()]
    return (
        f"`compress` from the model to the report, rank {facts['rank']} at the filter level, and what costs no more "
        "MACs at the layer level; random weights, nothing pruned, each in a process of its own on one thread of a "
        "machine that does other work too, so times are processor seconds. **before**: one small ridge from the first "
        "sweep on, three starts for layers of any size, up to 300 sweeps. **after**, for more than 64 components: a "
        "larger ridge in the first 60 sweeps, one start, up to 180 sweeps.\n\n" + table(_HEADER, rows)
    )


def _row(name: str, label: str, row: Facts) -> list[object]:
    own, shared = row["filter"], row["layer"]
    times = own["processor_seconds"], shared["processor_seconds"]
    return [
        name,
        label,
        f"{100 * own['macs_share']:.1f} / {100 * shared['macs_share']:.1f} %",
        f"{times[0]:.1f}",
        f"{times[1]:.1f}",
        f"{times[1] / times[0]:.1f} x",
        f"{own['mean_nmse']:.4f} / {shared['mean_nmse']:.4f}",
    ]
