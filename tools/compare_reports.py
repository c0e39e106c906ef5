"""Show that a change of the code changes no figure: compress the same models before and after, compare the reports.

    python tools/compare_reports.py write before.jsonl            # on the old commit: the sample, or the models named
    python tools/compare_reports.py write after.jsonl             # on the new one
    python tools/compare_reports.py compare before.jsonl after.jsonl

Every model is compressed as by tools/coverage.py, in a process of its own. Compared field by field: status, MACs and
parameters, each layer before and after, each decomposed layer with its NMSE, each pruned group with its members and
widths, what was left as it was, and the structure. Times are not compared, nor is the wording of reasons. Errors of
the verification are those of rounding: they are printed where they differ by more than a factor of ten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coverage_row import load_disturbed, quick_recipe

SAMPLE = Path(__file__).with_name("compare_reports_models.json")
TIMED = ("seconds", "verify_seconds")
WORDS = ("reason", "notes", "code", "codes", "text")
ERRORS = ("error", "largest_error")
COMMAND = "python tools/compare_reports.py write ...; python tools/compare_reports.py compare before.jsonl after.jsonl"
# Factors come from the same seeds; the last digits of an NMSE may follow the order of additions.
TOLERANCE = 1e-6


def report_of(source: str, time_limit: float) -> dict[str, Any]:
    """Compress one model in this process and return its report as JSON holds it."""
    from norton_plugin import NortonError, compress

    row: dict[str, Any] = {"model": source}
    try:
        loaded = load_disturbed(source)
        recipe = quick_recipe(keep=0.7, time_limit=time_limit)
        _, report = compress(loaded.model, loaded.example_inputs, recipe, forward_fn=loaded.forward_fn)
    except NortonError as error:
        return row | {"failed": type(error).__name__, "reason": str(error)}
    canonical = json.dumps(report.structure, sort_keys=True, separators=(",", ":"))
    return row | report.to_dict() | {"structure": hashlib.sha256(canonical.encode()).hexdigest()}


def write(models: list[str], path: Path, time_limit: float) -> None:
    """Append the report of every model that the file does not hold yet."""
    done = {json.loads(line)["model"] for line in path.read_text().splitlines()} if path.exists() else set()
    for source in [model for model in models if model not in done]:
        command = [sys.executable, __file__, "one", source, "--time", str(time_limit)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = process.stdout.strip().splitlines()
        row = json.loads(lines[-1]) if process.returncode == 0 and lines else None
        row = row or {"model": source, "failed": "crash", "reason": process.stderr[-300:]}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(source, row.get("status", row.get("failed")), row.get("seconds"), flush=True)


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yield a readable line for every field in which two reports differ."""
    key = path.rpartition(".")[2]
    if key in TIMED or key in WORDS:
        return
    if key in ERRORS and isinstance(before, float) and isinstance(after, float):
        if not before / 10 <= after <= before * 10 and max(before, after) > 1e-6:
            yield f"{path}: {before:.1e} -> {after:.1e}"
    elif isinstance(before, dict) and isinstance(after, dict):
        for name in before:  # fields that only the new code has are no change of a figure
            yield from differences(before[name], after.get(name), f"{path}.{name}" if path else name)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (a, b) in enumerate(zip(before, after, strict=True)):
            yield from differences(a, b, f"{path}[{number}]")
    elif isinstance(before, float) and isinstance(after, float):
        if abs(before - after) > TOLERANCE * max(abs(before), abs(after)):
            yield f"{path}: {before!r} -> {after!r}"
    elif before != after:
        yield f"{path}: {str(before)[:120]} -> {str(after)[:120]}"


def _reports(path: Path) -> dict[str, Any]:
    return {row["model"]: row for row in map(json.loads, path.read_text().splitlines())}


def compare(before: Path, after: Path) -> dict[str, Any]:
    """Print what differs between two files of reports.

    Returns:
        JSON-able: what came of each model that both files hold, and what differs, by model.
    """
    old, new = _reports(before), _reports(after)
    changed: dict[str, list[str]] = {}
    for model in sorted(old.keys() | new.keys()):
        if model not in old or model not in new:
            lines = [f"only in {before.name if model in old else after.name}"]
        else:
            lines = list(differences(old[model], new[model]))
        if lines:
            changed[model] = lines
        for line in lines[:10]:
            print(f"{model}: {line}")
    both = sorted(old.keys() & new.keys())
    print(f"{len(both)} models compared, {len(changed)} differ")
    facts = ("status", "failed", "macs_before", "macs_after")
    models = {model: {fact: new[model][fact] for fact in facts if fact in new[model]} for model in both}
    return {"models": models, "differ": changed}


def main() -> None:
    """Parse the arguments and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="compress models and append their reports to a file")
    writing.add_argument("path", type=Path)
    writing.add_argument("models", nargs="*", help="sources such as timm:resnet18; the sample where none is named")
    comparing = commands.add_parser("compare", help="compare two files, field by field")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--commits", nargs=2, metavar=("BEFORE", "AFTER"), help="what the files were made with")
    comparing.add_argument("--note", default="", help="why something differs, for the page of results")
    comparing.add_argument("--out", type=Path, help="write what came of it as JSON")
    single = commands.add_parser("one", help="print the report of one model")
    single.add_argument("model")
    for command in (writing, single):
        command.add_argument("--time", type=float, default=120.0, help="seconds that tracing and verification may take")
    arguments = parser.parse_args()
    if arguments.command == "one":
        print(json.dumps(report_of(arguments.model, arguments.time)))
    elif arguments.command == "write":
        write(arguments.models or json.loads(SAMPLE.read_text()), arguments.path, arguments.time)
    else:
        found = compare(arguments.before, arguments.after)
        if arguments.out:
            arguments.out.write_text(
                json.dumps(
                    {"command": COMMAND, "commits": arguments.commits, "note": arguments.note, **found}, indent=1
                )
                + "\n"
            )
        raise SystemExit(bool(found["differ"]))


if __name__ == "__main__":
    main()
