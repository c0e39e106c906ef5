"""Compress many models, each in a process of its own, and write what became of them.

    python tools/coverage.py --list timm-families --keep 0.7 --rank auto
    python tools/coverage.py --source torchvision --all
    python tools/coverage.py timm:resnet18 torchvision:swin_t
    python tools/coverage.py --list timm-known --redo timeout error

Every model is built without a download, decomposed, pruned and verified. Results are appended to a JSONL file as
they come; a run that was stopped goes on where it was. At the end the table in docs/coverage.md is written.

Status: ``full`` every group of channels was pruned but the model's outputs and those too small to round; ``partial``
some groups were left, ``decompose-only`` no channel went, ``none`` nothing could be done, ``not buildable`` the model
needs CUDA operators or packages that are absent, ``error`` an exception that is not one of ours, ``timeout`` and
``memory`` the limits.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LISTS = Path(__file__).with_name("coverage_models.json")
ALONE = Path(__file__).with_name("coverage_alone.json")
UPSTREAM = Path(__file__).parents[1] / "docs" / "results" / "upstream.json"
STATUSES = ("full", "partial", "decompose-only", "none", "not buildable", "error", "timeout", "memory")
# What exceptions say that stand for a limit on memory.
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "bad_alloc")
INTRODUCTION = """
Every model is built with random weights and compressed in a process of its own on one core: convolutions become blocks
of rank 2 where that saves MACs, and 70 % of the channels of every group are kept. Random numbers take the place of
parameters that are constant at the start, which would hide mistakes.

- **full**: every group of channels is pruned but the model's outputs, those too small to round, tokens and heads, and
  layers that do not run; **partial**: some groups are left, for the [reasons](reasons.md) in the last column;
  **decompose-only**: no channel went.
- **largest error**: of any pruned group, the largest relative difference between the outputs of the pruned model and
  those of the unpruned one with the same channels masked, in double precision of the outputs; above 1e-4 a group is
  rolled back and listed. A masked channel counts for nobody: sums leave it out, and what is taken over channels
  (statistics of LayerNorm, GroupNorm, RMSNorm and GRN, the softmax of channel attention, the kernel of ECA) is taken
  over the kept ones, because that is what the smaller layer computes. Detectors whose outputs are sorted, or empty,
  are compared by the layers before that.
- **narrowest**: the smallest share of its channels that any layer kept; counts are rounded to multiples of 8.
- **seconds** are those of `compress` on a shared machine, **verifying** its share for verification, which tries no
  further group after a quarter of the time limit or 60 s; **GiB** is the peak of the process.
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


def examine(source: str, keep: float, rank: str, time_limit: float) -> dict[str, Any]:
    """Compresses one model in this process and describes the outcome."""
    import torch

    from norton_plugin import NortonError, compress
    from norton_plugin.recipe import Decomposition, Pruning, Recipe
    from norton_plugin.surgery.report import blocking
    from norton_plugin.zoo import load_source

    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"model": source}
    start = time.perf_counter()
    try:
        loaded = load_source(source)
    except NortonError as error:
        return row | _failure("not buildable", str(error))
    try:
        # Fresh norms, layer scales and zero-initialised heads are constant and would hide mistakes from the check.
        for parameter in loaded.model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.data += 0.1 * torch.randn_like(parameter)
        # At random weights no useful rank reaches an error target, so "auto" is one that saves MACs mostly.
        chosen = Decomposition(rank=2 if rank == "auto" else int(rank), sweeps=20, restarts=1)
        recipe = Recipe(decomposition=chosen, pruning=Pruning(keep=keep), time_limit=min(60.0, time_limit / 4))
        start = time.perf_counter()
        _, report = compress(loaded.model, loaded.example_inputs, recipe, forward_fn=loaded.forward_fn)
        left = blocking(report.pruning.skipped)
        convs = len(report.decomposition.layers) + len(report.decomposition.skipped)
        row |= {
            "status": report.status,
            "decomposed": f"{len(report.decomposition.layers)}/{convs}",
            "pruned": f"{len(report.pruning.groups)}/{len(report.pruning.groups) + len(left)}",
            "macs_before": report.macs_before,
            "macs_after": report.macs_after,
            "macs_down": round(100 * (1 - report.macs_after / report.macs_before), 1),
            "narrowest": round(100 * min((layer.kept for layer in report.layers), default=1.0), 1),
            "verifying": round(report.verify_seconds, 1),
            "error": report.pruning.largest_error,
            "reason": "; ".join(f"{n} x {r}" for r, n in Counter(s.reason for s in left).most_common(3)),
            "codes": dict(Counter(s.code for s in left).most_common()),
            "rule_failures": [cause.text for cause in report.pruning.rule_failures],
        }
    except NortonError as error:
        row |= _failure("none", str(error))
    except Exception as error:  # an exception of another kind is what this tool looks for
        row |= _failure("error", f"{type(error).__name__}: {error}")
    row["seconds"] = round(time.perf_counter() - start, 1)
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def _failure(status: str, reason: str) -> dict[str, Any]:
    memory = any(words in reason for words in OUT_OF_MEMORY)
    return {"status": "memory" if memory else status, "reason": reason[:300]}


def in_subprocess(source: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same in a fresh process under limits of time and memory."""

    def limit() -> None:
        size = int(arguments.memory * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    command = [sys.executable, __file__, source, "--worker", "--keep", str(arguments.keep), "--rank", arguments.rank]
    command += ["--time", str(arguments.time)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=arguments.time, preexec_fn=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"model": source, "status": "timeout", "reason": f"over {arguments.time:g} s", "seconds": arguments.time}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:300]
    # The system ends a process that asks for too much without a word.
    return {"model": source, **_failure("memory" if done.returncode < 0 else "error", reason)}


def sources(arguments: argparse.Namespace) -> list[str]:
    """The models asked for."""
    lists: dict[str, list[str]] = json.loads(LISTS.read_text())
    names = list(arguments.models)
    for name in arguments.list:
        names += lists[name]
    if arguments.source:
        from norton_plugin.zoo import list_models

        known = [f"{arguments.source}:{name}" for name in list_models(arguments.source)]
        names += known if arguments.all else lists.get(f"{arguments.source}-families", known)
    return list(dict.fromkeys(names))


def markdown(rows: Iterable[dict[str, Any]], commands: Sequence[str]) -> str:
    """The page: how to read it, summaries, then a table for each ecosystem, most complete first."""
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
    return ["" if cells.get(key) is None else cells[key] for key in COLUMNS]


def _summary(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    """What came of each ecosystem in one line; figures are those of the models that were pruned."""
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
    """The lists once more beside what torch-pruning does by itself, and why it fails."""
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
    """Why groups are left, the most frequent first, and which models cannot be built at all."""
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
    """How many groups each reason keeps: by code, or by its words without figures where a row is older than codes."""
    if "codes" in row:
        return Counter({f"[`{code}`](reasons.md#{code})": count for code, count in row["codes"].items()})
    found: Counter[str] = Counter()
    for count, reason in re.findall(r"(\d+) x (.*?)(?=; \d+ x |$)", row.get("reason", "")):
        found[re.sub(r" by (inf|[\d.e+-]+)(?= )| \(.*", "", reason)] += int(count)
    return found


def main() -> None:
    """Parses the arguments and runs the sweep, or one model of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="sources such as timm:resnet18")
    parser.add_argument("--list", nargs="+", default=[], choices=json.loads(LISTS.read_text()), help="named lists")
    parser.add_argument("--source", choices=["timm", "torchvision", "mmdet"], help="a whole ecosystem")
    parser.add_argument("--all", action="store_true", help="with --source: every model, not one of each family")
    parser.add_argument("--redo", nargs="+", default=[], choices=STATUSES, help="run models of these outcomes again")
    parser.add_argument("--keep", type=float, default=0.7, help="share of the channels to keep")
    parser.add_argument("--rank", default="auto", help="rank, or auto: 2, where it saves MACs")
    parser.add_argument("--time", type=float, default=120.0, help="seconds per model, its building included")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB of address space per model")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results/coverage.jsonl"), help="where rows are added"
    )
    parser.add_argument("--table", type=Path, default=Path("docs/coverage.md"), help="the page to write")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(examine(arguments.models[0], arguments.keep, arguments.rank, arguments.time)))
        return

    from rich.progress import Progress

    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, dict[str, Any]] = {}
    if arguments.results.exists():
        known = {row["model"]: row for row in map(json.loads, arguments.results.read_text().splitlines())}
    wanted = sources(arguments)
    redone = {model for model, row in known.items() if row["status"] in arguments.redo}
    with Progress() as progress, arguments.results.open("a") as file:
        task = progress.add_task("models", total=len(wanted))
        for source in wanted:
            progress.update(task, description=source)
            if source not in known or source in redone:
                known[source] = in_subprocess(source, arguments)
                file.write(json.dumps(known[source]) + "\n")
                file.flush()
            progress.advance(task)
    kinds = list(dict.fromkeys(model.partition(":")[0] for model in known))
    arguments.table.write_text(markdown(known.values(), [COMMANDS[kind] for kind in kinds if kind in COMMANDS]))
    print(f"{len(wanted)} models; {arguments.table} written")


if __name__ == "__main__":
    main()
