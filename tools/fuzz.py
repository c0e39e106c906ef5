"""Give hostile and odd input to everything that reads some, and count what becomes of it.

    python tools/fuzz.py                                     # all targets, some minutes on one core
    python tools/fuzz.py --only manifests pickles --cases 50
    python tools/fuzz.py --only manifests --seed 0 --case 17 # one case again, with all that is known of it

Each attempt ends in one of three ways: **ok**, **refused clearly** (a ``NortonError``, one line of error on the
command line) or **wrong**: any other exception, a crash, a hang, memory beyond a limit, a file or a module touched that
was laid out as bait, the network, a model that is not the one that was saved, a number that is not right. A case is
decided by seed, target and number; only where processes run side by side (``kills``, ``savers``) time decides as well.
The exit code is 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from fuzzing.report import as_json, print_tally, print_wrong
from fuzzing.runner import Tally, run_target
from fuzzing.targets import PLANTED, TARGETS


def _test_own_tree() -> None:
    """Let the workers import the package beside this script, whichever is installed."""
    root = Path(__file__).resolve().parents[1]
    if (root / "norton_plugin" / "__init__.py").is_file():
        given = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(root) + (os.pathsep + given if given else "")


def main() -> int:
    """Run what was asked for."""
    _test_own_tree()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*TARGETS, PLANTED.name]
    parser.add_argument("--only", nargs="+", metavar="TARGET", choices=names, help=", ".join(TARGETS))
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default 0)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--cases", type=int, metavar="N", help="cases per target")
    amount.add_argument("--scale", type=float, default=1.0, metavar="S", help="times the usual number of cases")
    amount.add_argument("--case", type=int, metavar="K", help="only case K, of one target")
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no case after this time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts as JSON")
    options = parser.parse_args()
    targets = [{**TARGETS, PLANTED.name: PLANTED}[name] for name in options.only or TARGETS]
    if options.case is not None and len(targets) != 1:
        parser.error("--case needs --only with one target")

    start, tallies = time.monotonic(), []
    end = None if options.minutes is None else start + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        for left, target in zip(range(len(targets), 0, -1), targets, strict=True):
            now = time.monotonic()
            until = None if end is None else now + (end - now) / left
            cases = options.cases or max(1, round(target.cases * options.scale))
            numbers = range(cases) if options.case is None else [options.case]
            tally = run_target(target, folder=folder, seed=options.seed, numbers=numbers, until=until)
            print_tally(tally, first=not tallies)
            tallies.append(tally)
        print_wrong(tallies, seed=options.seed, everything=options.case is not None)
        if options.out is not None:
            facts = as_json(tallies, seed=options.seed, seconds=time.monotonic() - start, hidden=str(folder))
            options.out.write_text(json.dumps(facts, indent=1) + "\n")
    return _exit_code(tallies)


def _exit_code(tallies: list[Tally]) -> int:
    return 1 if any(tally.wrong for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
