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
        "larger ridge in the first 60 sweeps, one start, up to 180 sweeps. **fewer sweeps**: the same, with 180 sweeps "
        "for small layers, down to 30 for large ones, whose start is near their end.\n\n" + table(_HEADER, rows)
    )


def sweeps_of_many(facts: Facts) -> str:
    """Compare what fewer and more sweeps give where filters share many components."""
    rows = [
        [
            row["size"],
            f"{100 * row['macs_share']:.1f}",
            row["sweeps"],
            f"{row['mean_nmse']:.4f}",
            f"{row['top1']:.2f}",
            f"{row['processor_seconds']:.1f}",
        ]
        for row in facts["rows"]
    ]
    header = ["size of the 3x3 layers", "MACs %", "`sweeps`", "mean NMSE", "top-1 %", "processor s, whole compression"]
    return (
        "ResNet-26 at 64 pixels, the classifier of the section on a wide one; its 3x3 convolutions (64 to 512 "
        "channels) get components shared by a layer, BatchNorm statistics are re-estimated, nothing is fitted and "
        f"nothing trained. Dense: {facts['top1_dense']:.2f} % on {facts['test_images']} test images. `sweeps` is that "
        "of the recipe (300 by default), of which small layers of more than 64 components get 60 % and large ones "
        "down to 10 %. Differences in accuracy are below what chance makes of so many images.\n\n" + table(header, rows)
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
