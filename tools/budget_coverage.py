"""Compress a sample of models to half their MACs on unlabelled images, and write what became of them.

    python tools/budget_coverage.py
    python tools/budget_coverage.py --plans "both phases" --macs 0.3
    python tools/budget_coverage.py --redo timeout error -- timm:resnet18

Models are those of budget_models.json, with the size of their images: random weights and random images, each model in a
process of its own. Components shared by a layer, Linear layers included, then fitted to the images; with "both phases"
channels are pruned too. Rows (budget_coverage_row.py says what each status means) are added to a JSONL file as they
come; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from budget_coverage_row import PLANS, STATUSES, examine
from coverage_jobs import Worker, rows

SAMPLE: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("budget_models.json").read_text())


def read_rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the last row of every model and plan; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["model"], row["plan"]): row for row in map(json.loads, lines)}


def sweep(arguments: argparse.Namespace) -> None:
    """Run the models that have no row yet, or are to be run again."""
    from rich.progress import Progress

    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    known = read_rows(arguments.results)
    kept = {key for key, row in known.items() if row["status"] not in arguments.redo}
    wanted = [(model, plan) for plan in arguments.plans for model in arguments.models or SAMPLE]
    with Progress() as progress:
        task = progress.add_task("models", total=len(wanted), completed=len(set(wanted) & kept))
        for plan in arguments.plans:
            options = ("--plans", plan, "--macs", str(arguments.macs), "--images", str(arguments.images))
            worker = Worker(Path(__file__), options, arguments.time, arguments.memory)
            todo = [model for model, own in wanted if own == plan and (model, plan) not in kept]
            for row in rows(todo, worker):
                known[row["model"], plan] = {"plan": plan, **row}
                ordered = sorted(known.values(), key=lambda each: (PLANS.index(each["plan"]), each["model"]))
                arguments.results.write_text("".join(json.dumps(each) + "\n" for each in ordered))
                progress.update(task, description=row["model"], advance=1)


def main() -> None:
    """Parse the arguments and run the sweep, or one model of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*SAMPLE, []], help="all of the sample where none is named")
    parser.add_argument("--plans", nargs="+", default=[PLANS[0]], choices=PLANS)
    parser.add_argument("--macs", type=float, default=0.5, help="the budget, a share of the dense model's MACs")
    parser.add_argument("--images", type=int, default=32, help="random calibration images")
    parser.add_argument("--redo", nargs="+", default=[], choices=STATUSES, help="run models of these outcomes again")
    parser.add_argument("--time", type=float, default=240.0, help="seconds per model, its building included")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB of address space per model")
    parser.add_argument("--results", type=Path, default=Path("docs/results/budget_coverage.jsonl"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        model, facts = arguments.models[0], {"macs": arguments.macs, "images": arguments.images}
        print(json.dumps(examine(model, SAMPLE[model], plan=arguments.plans[0], **facts)))
    else:
        sweep(arguments)


if __name__ == "__main__":
    main()
