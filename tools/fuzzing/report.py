"""What the fuzzer prints and writes."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fuzzing.runner import Tally

_SHOWN = 3  # wrong cases told of one kind
_PACKAGES = ("torch", "numpy", "safetensors", "timm", "torchvision", "mmengine", "mmcv", "mmdet")
_ROW = "{:<14} {:>7} {:>7} {:>9} {:>7} {:>7}  {}"


def print_tally(tally: Tally, *, first: bool) -> None:
    """Print a row of the table; the heading before the first one."""
    if first:
        print(_ROW.format("target", "tried", "ok", "refused", "wrong", "s", ""))
    left = f"{tally.left} cases left for want of time" if tally.left else ""
    counts = (tally.tried, tally.ok, tally.refused, len(tally.wrong), f"{tally.seconds:.0f}")
    print(_ROW.format(tally.target.name, *counts, f"skipped: {tally.skipped}" if tally.skipped else left), flush=True)


def print_wrong(tallies: Sequence[Tally], *, seed: int, everything: bool) -> None:
    """Print the kinds of wrong, and of each the first few cases with what runs them again."""
    for tally in tallies:
        name = tally.target.name
        for kind, count in tally.kinds.items():
            print(f"\n{name}: {kind} ({count} x)")
            for number, _, detail in [each for each in tally.wrong if each[1] == kind][:_SHOWN]:
                print(f"  python tools/fuzz.py --only {name} --seed {seed} --case {number}")
                print("    " + (detail if everything else detail[:400]).replace("\n", "\n    "))


def as_json(tallies: Sequence[Tally], *, seed: int, seconds: float, hidden: str) -> dict[str, Any]:
    """Return what ``--out`` writes.

    Args:
        tallies: Of all targets.
        seed: Of the run.
        seconds: Wall clock of all of it.
        hidden: The folder of the run, which says something about the machine and nothing about the result.
    """
    return {
        "command": " ".join(["python tools/fuzz.py", *sys.argv[1:]]),
        "seed": seed,
        "seconds": round(seconds),
        "versions": {"python": platform.python_version(), **_versions()},
        "targets": [_row(tally, hidden) for tally in tallies],
    }


def _row(tally: Tally, hidden: str) -> dict[str, Any]:
    return {
        "target": tally.target.name,
        "about": tally.target.about,
        "tried": tally.tried,
        "ok": tally.ok,
        "refused": tally.refused,
        "wrong": len(tally.wrong),
        "kinds": tally.kinds,
        "cases": [
            {"case": number, "kind": kind, "detail": detail.replace(hidden, "FOLDER")}
            for number, kind, detail in tally.wrong[: 4 * _SHOWN]
        ],
        "seconds": round(tally.seconds, 1),
        "skipped": tally.skipped,
        "left": tally.left,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
