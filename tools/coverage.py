"""Compress many models, each in a process of its own, and write what became of them.

    python tools/coverage.py --list timm-families --keep 0.7 --rank auto
    python tools/coverage.py --source torchvision --all
    python tools/coverage.py timm:resnet18 torchvision:swin_t
    python tools/coverage.py --list timm-known --redo timeout error
    python tools/coverage.py --source timm --all --submit slurm --jobs 200

Every model is built without a download, decomposed, pruned and verified. Results are appended to a JSONL file as
they come; a run that was stopped goes on where it was. At the end the page docs/coverage.md is written
(coverage_page.py) from all rows (coverage_row.py, which says what each status means).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from coverage_jobs import Cluster, Worker, rows
from coverage_page import COMMANDS, LISTS, markdown
from coverage_row import STATUSES, examine


def sources(arguments: argparse.Namespace) -> list[str]:
    """Return the models asked for, each once."""
    lists: dict[str, list[str]] = json.loads(LISTS.read_text())
    names = list(arguments.models)
    for name in arguments.list:
        names += lists[name]
    if arguments.source:
        from norton_plugin.zoo import list_models

        known = [f"{arguments.source}:{name}" for name in list_models(arguments.source)]
        names += known if arguments.all else lists.get(f"{arguments.source}-families", known)
    return list(dict.fromkeys(names))


def sweep(arguments: argparse.Namespace) -> None:
    """Run the models that have no row yet, or are to be run again, and write the page of all rows."""
    from rich.progress import Progress

    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, dict[str, Any]] = {}
    if arguments.results.exists():
        known = {row["model"]: row for row in map(json.loads, arguments.results.read_text().splitlines())}
    wanted = sources(arguments)
    redone = {model for model, row in known.items() if row["status"] in arguments.redo}
    todo = [source for source in wanted if source not in known or source in redone]
    options = ("--keep", str(arguments.keep), "--rank", arguments.rank)
    worker = Worker(Path(__file__), options, arguments.time, arguments.memory)
    cluster = Cluster(arguments.submit, arguments.logs, arguments.partition) if arguments.submit else None
    with Progress() as progress, arguments.results.open("a") as file:
        task = progress.add_task("models", total=len(wanted), completed=len(wanted) - len(todo))
        for row in rows(todo, worker, jobs=arguments.jobs, cluster=cluster):
            known[row["model"]] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            progress.update(task, description=row["model"], advance=1)
    kinds = list(dict.fromkeys(model.partition(":")[0] for model in known))
    arguments.table.write_text(markdown(known.values(), [COMMANDS[kind] for kind in kinds if kind in COMMANDS]))
    print(f"{len(wanted)} models; {arguments.table} written")


def main() -> None:
    """Parse the arguments and run the sweep, or one model of it."""
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
    parser.add_argument("--jobs", type=int, default=1, help="models at once; each takes its own memory")
    parser.add_argument("--submit", choices=["slurm", "local"], help="as jobs, by submitit (pip install submitit)")
    parser.add_argument("--partition", help="of Slurm")
    parser.add_argument("--logs", type=Path, default=Path("coverage_jobs"), help="folder of the jobs' logs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(examine(arguments.models[0], arguments.keep, arguments.rank, arguments.time)))
    else:
        sweep(arguments)


if __name__ == "__main__":
    main()
