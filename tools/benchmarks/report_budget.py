"""The section on sizes found from a budget."""

from __future__ import annotations

from report_table import RUN_HEADER, Facts, run_cells, table

TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}


def compressed_cells(row: Facts) -> list[object]:
    """Return the cells that begin a row: what was compressed to which budget, and how right it is."""
    return [
        TITLES.get(row["network"], row["network"]),
        f"{100 * row['budget']:g}",
        row["variant"],
        f"{100 * row['macs_share']:.1f}",
        f"{100 * row['parameters_share']:.1f}",
        f"{row['top1_dense']:.2f}",
        f"{row['top1']:.2f}",
    ]


def budget(facts: Facts) -> str:
    """Return accuracy with sizes from a budget and with one share for all layers, at equal MACs."""
    rows = [
        [
            *compressed_cells(row),
            f"{row['divergence']:.3f}",
            *run_cells(row),
        ]
        for row in sorted(facts["variants"].values(), key=lambda row: (row["network"], row["budget"], row["variant"]))
    ]
    header = ["network", "budget, MACs %", "sizes", "MACs %", "parameters %", "dense top-1 %", "top-1 %"]
    header += ["divergence, nats", *RUN_HEADER]
    return (
        f"{facts['data']}. Level `layer`, every layer open (the first convolution too), factors fitted to what layers "
        "see; one share is the largest for all layers within the budget. Seconds are those of the whole compression on "
        "a shared machine.\n\n" + table(header, rows)
    )
