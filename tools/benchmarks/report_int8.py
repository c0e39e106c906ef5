"""The section of the results page on pruning, decomposition and int8."""

from __future__ import annotations

from report_table import Facts, table

_VARIANTS = {
    "dense": "dense",
    "pruned": "pruned",
    "decomposed": "decomposed, rank 4",
    "both": "decomposed and pruned",
    "shared": "decomposed, shared by the layer",
}
_NETWORKS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "resnet50": "ResNet-50 at 224"}
_HEADER = [
    "network",
    "variant",
    "forms",
    "MACs, M",
    "runtime",
    "fp32 KiB",
    "int8 KiB",
    "fp32 top-1 %",
    "int8 top-1 %",
    "same top-1 %",
    "fp32 ms",
    "int8 ms",
    "int8 gives",
    "over dense fp32",
]
_READING = """
Forms: `static` is what `norton export` writes, the form that is fast in fp32 for the sizes of each block, which may be
the rebuilt dense convolution; `depthwise` keeps the factors (pointwise, depthwise, 1x1). MACs are those of the factors.
Milliseconds are processor time of one image on one thread, fp32 and int8 in turns on a machine that others used too.
**Int8 gives** is fp32 over int8 of the same row; **over dense fp32** is the dense network's fp32 in the same runtime
over this row's int8. The first shows what the last step adds, the second what all steps add. ResNet-50 has random
weights: its answers say nothing.
""".strip().replace("\n", " ")


def int8(facts: Facts) -> str:
    """Return what pruning, decomposition and quantisation add."""
    machine = facts["machine"]
    versions = ", ".join(f"{name} {number.split('-')[0]}" for name, number in facts["versions"].items())
    dense = {
        (row["network"], row["runtime"]): row["fp32_ms"]
        for row in facts["variants"].values()
        if row["variant"] == "dense"
    }
    ordered = sorted(facts["variants"].values(), key=_place)
    rows = [_row(row, dense.get((row["network"], row["runtime"]))) for row in ordered]
    return (
        f"{facts['data']}. {machine['processor']}, int8 instructions: {machine['int8_instructions']}; {versions}. "
        f"{_READING}\n\n{table(_HEADER, rows)}"
    )


def _place(row: Facts) -> tuple[int, str, int, str]:
    """Return where a row stands in the table."""
    networks, variants = list(_NETWORKS), list(_VARIANTS)
    return networks.index(row["network"]), row["runtime"], variants.index(row["variant"]), row["form"]


def _row(row: Facts, dense: float | None) -> list[object]:
    trained = row["fp32_top1"] is not None
    return [
        _NETWORKS[row["network"]],
        _VARIANTS[row["variant"]],
        row["form"],
        f"{row['mega_macs']:.1f}",
        row["runtime"],
        f"{row['fp32_bytes'] / 1024:.0f}",
        f"{row['int8_bytes'] / 1024:.0f}",
        f"{row['fp32_top1']:.2f}" if trained else "-",
        f"{row['int8_top1']:.2f}" if trained else "-",
        f"{row['agreement']:.1f}" if trained else "-",
        f"{row['fp32_ms']:.2f}",
        f"{row['int8_ms']:.2f}",
        f"{row['speedup']:.2f}x",
        "-" if dense is None else f"{dense / row['int8_ms']:.2f}x",
    ]
