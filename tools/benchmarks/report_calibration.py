"""The section on fits to what layers see."""

from __future__ import annotations

from collections import defaultdict

from report_table import Facts, table

_TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}


def _range(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f}-{max(values):.1f})"


def calibration(facts: Facts) -> str:
    """Return accuracy before and after the fit, at equal MACs."""
    groups: dict[tuple[str, int, int, str, int], list[Facts]] = defaultdict(list)
    for row in facts["variants"].values():
        key = (row["network"], row["test_images"], row["budget_rank"], row["level"], row["calibration_images"])
        groups[key].append(row)
    rows = []
    for (network, images, _, level, count), found in sorted(groups.items()):
        kept = [row["divergence"][row["kept"]] for row in found]
        rows.append(
            [
                _TITLES[network],
                f"{100 * found[0]['macs_share']:.1f}",
                level,
                count,
                images,
                f"{found[0]['top1_dense']:.2f}",
                _range([row["top1_plain"] for row in found]),
                _range([row["top1"] for row in found]),
                _range([row["output_nmse_before"] * 100 for row in found]),
                _range([row["output_nmse_after"] * 100 for row in found]),
                f"{sum(kept) / len(kept):.2f}",
                ", ".join(str(row["seed"]) for row in found),
                _range([row["wall_seconds"] for row in found]),
                _range([row["processor_seconds"] for row in found]),
            ]
        )
    header = ["network", "MACs %", "level", "images", "test images", "dense top-1 %", "plain, BatchNorm re-estimated"]
    header += ["fitted", "output error before, %", "after, %", "divergence, nats", "seeds", "wall s", "processor s"]
    return (
        f"{facts['data']}. The same components everywhere, as many as cost the MACs of rank 1 or 2 per filter; nothing "
        "pruned, no budget. One image in eight (by batches) is held back, and decides whether norms are corrected. "
        "Output error: squared error of a layer's output over the variance of its target, averaged over decomposed "
        "layers, in the stream that the fitted layers before it make. Seconds are those of the whole compression; the "
        "machine was shared, so wall-clock times are long.\n\n" + table(header, rows)
    )
