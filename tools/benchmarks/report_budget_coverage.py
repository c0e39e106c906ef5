"""The section on budgets over models of all kinds."""

from __future__ import annotations

import statistics
from collections import Counter

from report_table import Facts, table

_OUTCOMES = ("met", "below", "minimum", "over", "refused", "not buildable", "error", "timeout", "memory")
_OTHERS = "mmdet", "python", "timm", "torchvision"


def budget_coverage(facts: Facts) -> str:
    """Return what became of every model, and why layers are fitted as they are."""
    rows = facts["rows"]
    parts = [
        "Random weights, norms with statistics of random images, 32 such images of 64 to 224 pixels, a budget of "
        f"{100 * rows[0]['asked']:g} % of the MACs; narrow variants of wide models (`tools/budget_models.json`), each "
        "in a process of its own on a shared machine. *Met*: within 2 % of the budget; *below*: further below it; "
        "*minimum*: out of reach, the least was said, and met when asked for. Kept is what brings the outputs of 4 "
        "held-back images nearest to the dense model's (divergence: nats of logits, otherwise a relative squared "
        "error). A two-stage detector's MACs are those of the regions that it proposes itself, which are not as many "
        "afterwards. Rows with a star are of an earlier run: level `auto`, and a ridge by the number of samples alone, "
        "which overfits.",
        _summary(rows),
        "Layers fitted one after the other: to the **stream** that their output is added to, or to their own "
        "**output**; **symmetric**: to the inputs of the dense model as well. Left: not fitted.",
        _models(rows),
        _reasons(rows),
    ]
    return "\n\n".join(parts)


def _done(rows: list[Facts]) -> list[Facts]:
    return [row for row in rows if "macs_share" in row]


def _summary(rows: list[Facts]) -> str:
    cells = []
    for kind in _OTHERS:
        own = [row for row in rows if row["model"].startswith(f"{kind}:")]
        if not own:
            continue
        counts, done = Counter(row["status"] for row in own), _done(own)
        shares = [100 * row["macs_share"] / row["budget"] for row in done]
        kept = sum(row["kept"] != "plain" for row in done)
        equal = sum(row["loads_equal"] for row in done)
        cells.append(
            [
                "narrow detectors of torchvision" if kind == "python" else kind,
                len(own),
                *(counts[status] for status in _OUTCOMES[:4]),
                sum(counts[status] for status in _OUTCOMES[4:]),
                f"{min(shares):.1f} to {max(shares):.1f}" if shares else "-",
                f"{kept} of {len(done)}",
                f"{equal} of {len(done)}",
                f"{statistics.median(row['processor_seconds'] for row in done):.0f}" if done else "-",
            ]
        )
    header = ["ecosystem", "models", *_OUTCOMES[:4], "other", "MACs, % of the budget", "fit kept"]
    return table([*header, "loads bit-equal", "processor s, median"], cells)


def _models(rows: list[Facts]) -> str:
    cells = []
    for row in rows:
        name = row["model"].partition(":")[2] + (" *" if "note" in row else "")
        size = "x".join(map(str, row.get("size", ())[1:]))
        if "macs_share" not in row:
            cells.append([name, size, row["status"], *(["-"] * 8), row["reason"].replace("|", "/")])
            continue
        targets = _targets(row)
        divergence = row["divergence"]
        cells.append(
            [
                name,
                size,
                row["status"],
                f"{100 * row['macs_share']:.1f}",
                *(targets[target] for target in ("stream", "output", "symmetric")),
                sum(row["left"].values()),
                f"{divergence['plain']:.2g}",
                f"{divergence[row['kept']]:.2g}",
                row["kept"],
                f"{row['processor_seconds']:.0f} s, {row['peak_gib']:.1f} GiB",
            ]
        )
    header = ["model", "pixels", "outcome", "MACs %", "stream", "output", "symmetric", "left", "divergence before"]
    return table([*header, "after", "kept", "processor, memory"], cells)


def _targets(row: Facts) -> Counter[str]:
    found: Counter[str] = Counter()
    for words, count in row["fitted"].items():
        found[words.partition(":")[0]] += count
    return found


def _reasons(rows: list[Facts]) -> str:
    layers: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in _done(rows):
        for words, count in [*row["fitted"].items(), *((f"left: {key}", n) for key, n in row["left"].items())]:
            layers[words] += count
            models[words] += 1
    cells = [[*words.partition(": ")[::2], count, models[words]] for words, count in layers.most_common()]
    return "Why, over all models:\n\n" + table(["fitted to", "reason", "layers", "models"], cells)
