"""The sections on models made ready for inference: latency as delivered, forms, and widths."""

from __future__ import annotations

import statistics

from report_table import Facts, table

_VARIANTS = ("separable", "loaded", "static", "measured")


def delivered(facts: Facts) -> str:
    """Latency of compressed models as a user gets them."""
    rows = [
        [
            f"{row['model']}, {row['size']}",
            row["rank"],
            row["keep"],
            f"{row['macs_ratio']:.2f}",
            f"{row['ms']['dense']:.1f}",
            f"{row['ms']['dense, folded']:.1f}",
            *(f"{row['ms'][name]:.1f} ({row['speedup_over_dense'][name]:.2f}x)" for name in _VARIANTS),
            f"{row['efficiency']:.2f}",
        ]
        for row in facts["rows"]
    ]
    header = ["model, side", "R", "keep", "MACs, times fewer", "dense", "dense, folded", "before: separable form"]
    return (
        f"{facts['method']} PyTorch {facts['torch']}, fp32, batch 1, random weights, a shared machine. Milliseconds; "
        "in brackets the speed-up over the dense model as it is. *Before*: what a loaded artefact ran in until forms "
        "were chosen. *Loaded*: `norton_plugin.load`, forms chosen by size in every call, norms not folded. *Static* "
        "and *measured*: `norton deploy` with and without `--static`. Efficiency is the speed-up of *measured* over "
        "the folded dense model, divided by the ratio of MACs.\n\n"
        + table([*header, "loaded", "static", "measured", "efficiency"], rows)
    )


def form_costs(facts: Facts) -> str:
    """How good the static choice of forms is."""
    rows, forms = facts["rows"], ("separable", "grouped", "depthwise", "dense")
    lines = []
    for name in ("contiguous", "channels_last"):
        own = [row["ms"] for row in rows if row["format"] == name]
        best = [min(ms[form] for form in forms) for ms in own]
        means = [sum(ms[form] / least for ms, least in zip(own, best, strict=True)) / len(own) for form in forms]
        lines.append([name, len(own), *(f"{mean:.2f}" for mean in means)])
    return (
        f"{len(rows)} blocks and formats, batch 1, one thread, PyTorch {facts['torch']}. Mean time of one form used "
        "for all of them, over the fastest form of each. The costs of `norton_plugin/blocks/form_choice.py` are fitted "
        "to these figures (`fit_form_costs.py`, which prints how good the choice is).\n\n"
        + table(["memory format", "blocks", *forms], lines)
    )


def memory_formats(facts: Facts) -> str:
    """Whether a model that is not measured should have its channels last."""
    gains = [row["ms"]["contiguous"] / row["ms"]["channels_last"] for row in facts["rows"]]
    rows = [
        [
            row["model"],
            row["recipe"],
            row["batch"],
            *(f"{row['ms'][name]:.1f}" for name in ("contiguous", "channels_last")),
            f"{gain:.2f}x",
            row["chosen"],
        ]
        for row, gain in zip(facts["rows"], gains, strict=True)
    ]
    header = ["model", "recipe", "batch", "contiguous, ms", "channels last, ms", "gain", "chosen without measuring"]
    return (
        f"Compressed models ({facts['keep']:.0%} of the channels kept), lowered and folded, random weights, fp32, one "
        f"thread, processor time, medians of interleaved calls; PyTorch {facts['torch']}, {facts['processor']}, a "
        "machine that did other work too. Gain: how many times as fast with channels last.\n\n"
        + table(header, rows)
        + f"\n\nThe median gain is {statistics.median(gains):.2f}x, the least {min(gains):.2f}x. Where nothing is "
        "measured, models of 2-D convolutions get their channels last on a CPU, and are held against what they "
        "computed before; those of 3-D convolutions stay contiguous."
    )


def width_lanes(facts: Facts) -> str:
    """Cost per MAC by the multiple that a width is."""
    rows = [
        [capability, f"{row['kernel']}x{row['kernel']}", row["format"]]
        + [f"{row['mean_by_multiple'][lanes]:.1f}" for lanes in ("16", "8", "4", "2", "1")]
        for capability, own in facts["rows"].items()
        for row in own
    ]
    return (
        f"{facts['method']} PyTorch {facts['torch']}, fp32, maps of 28x28, widths from 60 to 96. Picoseconds per MAC, "
        "the mean over widths by the largest of these numbers that divides them. AVX2 is the same processor told to "
        "use no more.\n\n" + table(["instructions", "kernel", "memory format", "16", "8", "4", "2", "odd"], rows)
    )
