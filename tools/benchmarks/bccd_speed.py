"""What trained blood cell detectors of bccd.py take as they are delivered, beside the dense one.

Runs ``norton deploy`` and ``norton bench`` as a user does, on the config and the last checkpoint that a fine-tuning run
of bccd.py left; one image of 320x256, one thread. Figures are medians over the runs of the benchmark. Added to
``bccd_speed.json``, a row for each variant, with the mAP of the same weights.

    OMP_NUM_THREADS=1 python tools/benchmarks/bccd_speed.py --work WORK --figures docs/results/bccd_norms.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bccd_variants import VARIANTS
from cifar_data import machine
from delivered_speed import RUNTIMES, settings_of
from hybrid import add_row

_SIZE = "256x320"
_EPOCHS = 12


def norton(*arguments: object) -> None:
    """Run a command of the package.

    Raises:
        SystemExit: It failed.
    """
    command = [sys.executable, "-m", "norton_plugin", *map(str, arguments), "--threads", "1"]
    print("norton", *arguments, flush=True)
    if subprocess.run(command).returncode:
        raise SystemExit(1)


def measured(folder: Path, target: Path, runs: int) -> dict[str, Any]:
    """Return milliseconds, dense and delivered, and the speed-up in every runtime.

    Args:
        folder: Work dir of a fine-tuning run.
        target: Where the delivered detector and the figures go.
        runs: Of ``norton bench``.
    """
    if not (target / "model").exists():
        config, checkpoint = folder / "norton_config.py", folder / f"epoch_{_EPOCHS}.pth"
        norton("deploy", config, checkpoint, "-o", target / "model", "--input-size", _SIZE)
    found = []
    for run in range(runs):
        file = target / f"bench_{run}.json"
        options = ["--runtimes", ",".join(("pytorch", *RUNTIMES)), "--clock", "processor", "--no-layers", "-o", file]
        norton("bench", target / "model", *options)
        found.append(settings_of(json.loads(file.read_text()))[0]["runtimes"])
    keys = ("dense_ms", "ms", "speed_up")
    return {name: {key: median(run[name][key] for run in found) for key in keys} for name in found[0]}


def macs_share(folder: Path) -> float:
    """Return the MACs that the hook left in the very run: plans for milliseconds differ from run to run."""
    report = json.loads((folder / "norton_report.json").read_text())
    return round(report["macs_after"] / report["macs_before"], 4)


def main() -> None:
    """Parse the arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the --work of bccd.py")
    parser.add_argument("--figures", type=Path, required=True, help="the file that bccd.py wrote")
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), metavar="NAME", help="all that were fine-tuned"
    )
    parser.add_argument("--runs", type=int, default=3, help="of the benchmark")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder of bccd_speed.json")
    arguments = parser.parse_args()
    known = json.loads(arguments.figures.read_text())
    facts = {
        "command": "OMP_NUM_THREADS=1 python tools/benchmarks/bccd_speed.py --work WORK --figures FILE",
        "dense_map": known["dense_test"]["map"],
        "machine": machine(),
    }
    for name in arguments.variants or known["variants"]:
        row = known["variants"][name]
        step = f"{name} seed 0".replace(" ", "_").replace(",", "")
        folder = arguments.work.resolve() / "work_dirs" / step
        if not (folder / "norton_config.py").exists():
            continue  # the dense detector, or one that was not fine-tuned
        found = {
            "macs_share": macs_share(folder),
            "map_after_surgery": row["after_surgery"]["map"],
            "map": row["finetuned_mean"]["map"],
            "seeds": len(row["finetuned"]),
            "runtimes": measured(folder, arguments.work.resolve() / "delivered" / step, arguments.runs),
        }
        print(name, found, flush=True)
        add_row(arguments.output / "bccd_speed.json", name, found, facts)


if __name__ == "__main__":
    main()
