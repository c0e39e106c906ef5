"""The page docs/coverage.md, written from the rows that tools/coverage.py has collected."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from coverage_row import STATUSES, counted_reasons, without_details

LISTS = Path(__file__).with_name("coverage_models.json")
ALONE = Path(__file__).with_name("coverage_alone.json")
UPSTREAM = Path(__file__).parents[1] / "docs" / "results" / "upstream.json"
INTRODUCTION = """
Every model is built with random weights and compressed in a process of its own on one core: convolutions become blocks
of rank 2 where that saves MACs, and 70 % of the channels of every group are kept. Random numbers take the place of
parameters that are constant at the start, which would hide mistakes.

- **full**: every group of channels is pruned but the model's outputs, those too small to round, tokens, heads and
  places, and those of layers that training alone runs; **partial**: some groups are left, for the
  [reasons](reasons.md) in the last column; **decompose-only**: no channel went.
- **largest error**: of any pruned group, the largest relative difference between the outputs of the pruned model and
  those of the unpruned one with the same channels masked, in double precision of the outputs; above 1e-4 a group is
  rolled back and listed. A masked channel counts for nobody: sums leave it out, and what is taken over channels
  (statistics of LayerNorm, GroupNorm, RMSNorm and GRN, the softmax of channel attention, the kernel of ECA) is taken
  over the kept ones, because that is what the smaller layer computes. Detectors whose outputs are sorted, or empty,
  are compared by the layers before that.
- **narrowest**: the smallest share of its channels that any layer kept; counts are rounded to multiples of 8.
- **seconds** are those of `compress` on a shared machine, **verifying** its share for verification, which tries no
  further group after a quarter of the time limit or 60 s; **GiB** is the peak of the process.

Whether budgets are met and layers can be fitted to images, on a sample of these models, is in the
[results](results/README.md#budgets-over-models-of-all-kinds-random-weights).
"""
COMMANDS = {
    "timm": "python tools/coverage.py --list timm-families timm-known",
    "torchvision": "python tools/coverage.py --source torchvision --all --time 240 --memory 14",
    "mmdet": "python tools/coverage.py --list mmdet-families --time 240 --memory 14",
}
COLUMNS = {
    "model": "model",
    "status": "status",
    "decomposed": "convs decomposed",
    "pruned": "groups pruned",
    "macs_before": "MACs",
    "macs_down": "MACs down %",
    "narrowest": "narrowest layer %",
    "error": "largest error",
    "seconds": "seconds",
    "verifying": "verifying",
    "peak_gib": "GiB",
    "reason": "reason",
}


def markdown(rows: Iterable[dict[str, Any]], commands: Sequence[str]) -> str:
    """Return the page: how to read it, summaries, then a table for each ecosystem, most complete first.

    Args:
        rows: What coverage_row.py gives, one per model.
        commands: Those that made the rows, to be quoted.
    """
    rows = sorted(rows, key=lambda row: (STATUSES.index(row["status"]), row["model"]))
    lines = ["# Coverage", "", *(f"    {command}" for command in commands), "", INTRODUCTION.strip()]
    kinds = sorted({row["model"].partition(":")[0] for row in rows})
    lines += [*_summary(rows, kinds), *_beside_torch_pruning(rows), *_reasons(rows)]
    for kind in kinds:
        own = [row for row in rows if row["model"].startswith(f"{kind}:")]
        counts = Counter(row["status"] for row in own)
        counted = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        lines += ["", f"## {kind}", "", f"{len(own)} models: {counted}."]
        lines += _table(COLUMNS.values(), map(_cells, own))
    return "\n".join(lines) + "\n"


def _table(heads: Iterable[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [[str(cell).replace("|", "/") for cell in row] for row in [list(heads), *rows]]  # a bar would end the cell
    texts = ["| " + " | ".join(cells) + " |" for cells in lines]
    return ["", texts[0], "|" + " --- |" * len(lines[0]), *texts[1:]]


def _cells(row: dict[str, Any]) -> list[Any]:
    cells = dict(row)
    if "macs_before" in row:
        cells["macs_before"] = f"{row['macs_before'] / 1e6:.0f} M"
    if row.get("error") is not None:
        cells["error"] = f"{row['error']:.0e}"
    if counted := _counted(row):
        cells["reason"] = counted_reasons(counted)
    return ["" if cells.get(key) is None else cells[key] for key in COLUMNS]


def _summary(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    """Return what came of each ecosystem in one line; figures are those of the models that were pruned."""
    table = []
    for kind in kinds:
        own = [row for row in rows if row["model"].startswith(f"{kind}:")]
        counts = Counter(row["status"] for row in own)
        cells = [kind, len(own), *(counts[status] for status in STATUSES[:5]), sum(counts[s] for s in STATUSES[5:])]
        if done := [row for row in own if row.get("error") is not None and "macs_down" in row]:
            down, seconds = [row["macs_down"] for row in done], [row["seconds"] for row in done]
            cells += [f"{statistics.median(down):.1f} ({min(down):.1f})", f"{max(row['error'] for row in done):.0e}"]
            cells += [min(row["narrowest"] for row in done), f"{statistics.median(seconds):.1f} ({max(seconds):.1f})"]
        table.append(cells)
    heads = ["ecosystem", "models", *STATUSES[:5], "error, timeout, memory", "MACs down %, median (least)"]
    heads += ["largest error", "narrowest layer %", "seconds, median (most)"]
    return ["", "## Summary", *_table(heads, table)]


def _beside_torch_pruning(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lists once more beside what torch-pruning does by itself, and why it fails."""
    lists, alone = json.loads(LISTS.read_text()), json.loads(ALONE.read_text())
    status = {row["model"]: row["status"] for row in rows}
    table = []
    for name in [name for name in alone if name in lists]:
        if counts := Counter(status[model] for model in lists[name] if model in status):
            done = [counts["full"], counts["partial"]]
            table.append([name, len(lists[name]), *done, sum(counts.values()) - sum(done), len(alone[name])])
    if not table:
        return []
    heads = ["list", "models", "full", "partial", "other", "torch-pruning alone"]
    page = ["", "## Beside torch-pruning alone", "", alone["note"], *_table(heads, table)]
    if UPSTREAM.exists():
        cases = json.loads(UPSTREAM.read_text())["cases"]
        page += [
            "",
            "What its dependency graph does not follow, for a report upstream (`tools/benchmarks/upstream.py`):",
        ]
        page += _table(
            ["pattern", "seen in", "torch-pruning alone", "cause", "here"],
            [[case[key] for key in ("pattern", "seen_in", "alone", "cause", "here")] for case in cases],
        )
    return page


def _reasons(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return why groups are left, the most frequent first, and which models cannot be built at all."""
    groups: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in rows:
        for reason, count in _reasons_of(row).items():
            groups[reason] += count
            models[reason] += 1
    page = []
    if groups:
        table = [[reason, count, models[reason]] for reason, count in groups.most_common()]
        page += ["", "## Why groups are left", *_table(["reason", "groups", "models"], table)]
    if failed := [row for row in rows if row.get("rule_failures")]:
        table = [[row["model"], "; ".join(row["rule_failures"])] for row in failed]
        page += ["", "## Rules that failed (mistakes of this package)", *_table(["model", "rules"], table)]
    if absent := [row for row in rows if row["status"] == "not buildable"]:
        table = [[row["model"], row["reason"].removeprefix(row["model"]).strip()] for row in absent]
        page += ["", "## Not buildable here", *_table(["model", "reason"], table)]
    return page


def _reasons_of(row: dict[str, Any]) -> Counter[str]:
    """Count the groups that each reason keeps: by code, or by its words in rows that are older than codes."""
    if "codes" in row:
        return Counter({f"[`{code}`](reasons.md#{code})": count for code, count in row["codes"].items()})
    found: Counter[str] = Counter()
    for count, reason in _counted(row):
        found[without_details(reason)] += count
    return found


def _counted(row: dict[str, Any]) -> list[tuple[int, str]]:
    """Return the reasons of a row, each with how many groups it keeps."""
    found = re.findall(r"(\d+) x (.*?)(?=; \d+ x |$)", row.get("reason", ""))
    return [(int(count), reason) for count, reason in found]
