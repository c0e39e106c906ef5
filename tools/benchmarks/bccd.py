"""A blood cell detector (BCCD) from scratch to half its MACs, by mmdet's own scripts: COCO mAP at every step.

Trains ``configs/bccd/retinanet_r18-thin_bccd.py`` with mmdet's ``tools/train.py``; then, by
``retinanet_r18-thin_bccd_norton.py``, decomposes, prunes and fine-tunes it, and does the same with decomposition alone
and pruning alone at the same MACs; the dense model gets the same fine-tuning. Every figure is CocoMetric's on the test
split, printed by mmdet's ``tools/test.py``. What is done already is not done again: finished steps lie in ``--work``,
and an interrupted training run is resumed.

    python tools/benchmarks/bccd.py --data DATA/bccd --work WORK
    python tools/benchmarks/bccd.py --data DATA/bccd --work WORK --from-surgery --variants VARIANT

Plans for milliseconds come from measured times and differ from run to run: ``--from-surgery`` fine-tunes what was
tested after surgery.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mmdet
from bccd_variants import FITTED, HOOK, VARIANTS, surgery_of
from cifar_data import machine
from mmengine.runner import CheckpointLoader

import norton_plugin.mm  # noqa: F401 - lets mmengine read its own checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
DENSE = "configs/bccd/retinanet_r18-thin_bccd.py"
FINETUNE = "configs/bccd/retinanet_r18-thin_bccd_finetune.py"
NORTON = "configs/bccd/retinanet_r18-thin_bccd_norton.py"
DENSE_EPOCHS, EPOCHS = 36, 12
# Surgery without fine-tuning: an epoch at rate 0 that leaves BatchNorm statistics as the hook left them.
STILL = ["train_cfg.max_epochs=1", "train_cfg.val_interval=9", "optim_wrapper.optimizer.lr=0", "param_scheduler=[]"]
STILL += [f"model.{part}.norm_cfg.momentum=0.0" for part in ("backbone", "neck", "bbox_head")]
OLD_STATISTICS = [f"{HOOK}batch_norm=False"]


@dataclass
class Bench:
    """Runs the scripts in a work folder and remembers what is done.

    Attributes:
        work: Working directory of the scripts, with a link ``data/bccd``.
        threads: Of OpenMP, for each script.
        commands: Those of this run and of earlier ones, by step.
    """

    work: Path
    threads: int
    commands: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.commands = json.loads(self.path.read_text())

    @property
    def path(self) -> Path:
        """Where finished steps are noted."""
        return self.work / "steps.json"

    def how(self, name: str) -> tuple[Path, dict[str, str]]:
        """Return where one of mmdet's scripts lies, and the environment to run it in."""
        own = [str(REPOSITORY), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
        path = os.pathsep.join(filter(None, own))
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": path}
        return Path(mmdet.__file__).parent / ".mim" / "tools" / name, environment

    def script(self, step: str, name: str, arguments: list[str]) -> dict[str, Any]:
        """Run one of mmdet's scripts, unless that was done; give the command as a user types it, and its cost."""
        if step in self.commands:
            return self.commands[step]
        tool, environment = self.how(name)
        real = [str(REPOSITORY / a) if a.startswith("configs/") else a for a in arguments]
        print(f"{step}: {name} {' '.join(arguments)}", flush=True)
        used, start = _processor_seconds(), time.monotonic()
        log = self.work / "logs" / f"{step.replace(' ', '_').replace(',', '')}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as file:
            done = subprocess.run(
                [sys.executable, str(tool), *real],
                cwd=self.work,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise SystemExit(f"{step} failed; see {log}")
        self.commands[step] = {
            "command": f"python MMDET/tools/{name} {' '.join(arguments)}",
            "seconds": round(time.monotonic() - start, 1),
            "processor_seconds": round(_processor_seconds() - used, 1),
        }
        if "--resume" in arguments:
            self.commands[step]["note"] = "interrupted and resumed; the seconds are those after the resumption"
        self.path.write_text(json.dumps(self.commands, indent=1) + "\n")
        return self.commands[step]

    def train(self, step: str, config: str, options: list[str]) -> Path:
        """Train into the folder ``step``, continuing where a run broke off; give the last checkpoint."""
        folder = _folder(step)
        resume = ["--resume"] if (self.work / folder / "last_checkpoint").exists() else []
        arguments = [config, "--work-dir", folder, *resume, *(["--cfg-options", *options] if options else [])]
        self.script(step, "train.py", arguments)
        path = Path((self.work / folder / "last_checkpoint").read_text().strip())
        return path.relative_to(self.work) if path.is_absolute() else path

    def test(self, step: str, config: str, checkpoint: Path, options: list[str]) -> dict[str, float]:
        """CocoMetric's figures on the test split, in percent."""
        folder = _folder(step)
        arguments = [config, str(checkpoint), "--work-dir", folder]
        self.script(step, "test.py", arguments + (["--cfg-options", *options] if options else []))
        newest = max((self.work / folder).glob("*/*.json"), key=lambda path: path.stat().st_mtime)
        metrics = json.loads(newest.read_text())
        names = {"bbox_mAP": "map", "bbox_mAP_50": "map50", "bbox_mAP_75": "map75"}
        names |= {f"{kind}_precision": f"map_{kind}" for kind in ("RBC", "WBC", "Platelets")}
        return {short: round(100 * metrics[f"coco/{name}"], 1) for name, short in names.items()}


def _folder(step: str) -> str:
    return "work_dirs/" + step.replace(" ", "_").replace(",", "")


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def cost(work: Path, step: str) -> dict[str, Any]:
    """MACs and parameters, from the report that the hook wrote into the work dir."""
    report = json.loads((work / _folder(step) / "norton_report.json").read_text())
    return {
        "macs": report["macs_after"],
        "macs_share": round(report["macs_after"] / report["macs_before"], 4),
        "parameters": report["parameters_after"],
        "parameters_share": round(report["parameters_after"] / report["parameters_before"], 4),
        "macs_dense": report["macs_before"],
        "parameters_dense": report["parameters_before"],
        "surgery_seconds": round(report["seconds"], 1),
    }


def variant_row(bench: Bench, name: str, start: Path, seeds: list[int], *, again: bool) -> dict[str, Any]:
    """Surgery, mAP, fine-tuning with every seed, mAP; ``again`` compresses for each fine-tuning, too."""
    options, load = VARIANTS[name], [f"load_from={start}"]
    dense = name.startswith("dense")
    config = FINETUNE if dense else NORTON
    row: dict[str, Any] = {"config": config, "options": options}
    if dense:
        row["test"] = bench.test("dense test", DENSE, start, [])
    else:
        surgery, steps = surgery_of(name), {"after_surgery": options}
        if not set(FITTED) <= set(options):  # a fit sets the statistics itself
            steps["after_surgery_without_reestimation"] = options + OLD_STATISTICS
        for key, recipe in steps.items():
            step = f"{surgery} {key}"
            checkpoint = bench.train(step, NORTON, recipe + load + STILL)
            row[key] = bench.test(f"{step} test", NORTON, checkpoint, recipe)
        row |= cost(bench.work, f"{surgery} after_surgery")
        if not again:
            load = [f"load_from={bench.train(f'{surgery} after_surgery', NORTON, [])}"]  # done: its checkpoint
    runs = []
    for seed in seeds:
        step = f"{name} seed {seed}"
        checkpoint = bench.train(step, config, [*options, *load, f"randomness.seed={seed}"])
        result = bench.test(f"{step} test", config, checkpoint, options)
        spent = {key: bench.commands[step][key] for key in ("seconds", "processor_seconds")}
        runs.append({"seed": seed, **result, **spent})
        print(name, runs[-1], flush=True)
    row["finetuned"] = runs
    if runs:
        figures = [key for key in runs[0] if key.startswith("map")]
        row["finetuned_mean"] = {key: round(statistics.mean(run[key] for run in runs), 1) for key in figures}
    return row


def exported_agrees(bench: Bench, name: str, seed: int, row: dict[str, Any]) -> dict[str, Any]:
    """Build the compressed detector from the config that the hook wrote, without the hook, and compare the figures."""
    folder = _folder(f"{name} seed {seed}")
    config = f"{folder}/norton_config.py"
    metrics = bench.test(f"{name} exported test", config, Path(f"{folder}/epoch_{EPOCHS}.pth"), [])
    with_hook = next(run for run in row["finetuned"] if run["seed"] == seed)
    return {"config": config, "test": metrics, "same_as_with_hook": all(with_hook[k] == metrics[k] for k in metrics)}


def resumed_agrees(bench: Bench, name: str, seed: int, start: Path) -> dict[str, Any]:
    """Kills a fine-tuning run in the middle of an epoch (``kill -9``), resumes it, and compares the final weights."""
    step, reference = f"{name} seed {seed} killed", _folder(f"{name} seed {seed}")
    options = [*VARIANTS[name], f"load_from={start}", f"randomness.seed={seed}"]
    if step not in bench.commands:
        shutil.rmtree(bench.work / _folder(step), ignore_errors=True)
        tool, environment = bench.how("train.py")
        command = [sys.executable, str(tool), str(REPOSITORY / NORTON), "--work-dir", _folder(step)]
        log = bench.work / "logs" / "killed.log"
        with log.open("w") as file:
            run = subprocess.Popen(
                [*command, "--cfg-options", *options], cwd=bench.work, env=environment, stdout=file, stderr=file
            )
            while run.poll() is None and f"Epoch(train)  [{EPOCHS // 2}][10/" not in log.read_text():
                time.sleep(0.5)
            run.kill()
            run.wait()
    bench.train(step, NORTON, options)
    name = f"epoch_{EPOCHS}.pth"
    ours, theirs = (
        CheckpointLoader.load_checkpoint(str(bench.work / folder / name), "cpu")["state_dict"]
        for folder in (_folder(step), reference)
    )
    difference = max(float((ours[key].double() - theirs[key].double()).abs().max()) for key in theirs)
    return {"killed_in_epoch": EPOCHS // 2, "largest_difference_of_weights": difference}


def earlier_figures(path: Path, dense: dict[str, float]) -> dict[str, Any]:
    """Return the figures of earlier runs, which this one adds to: only those that start from an equal dense detector.

    Args:
        path: ``bccd.json``, if there is one.
        dense: The dense detector's figures of this run.

    Raises:
        SystemExit: The earlier figures are of another dense detector.
    """
    earlier: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if (before := earlier.get("variants", {}).get("dense", {}).get("test", dense)) != dense:
        raise SystemExit(f"{path} starts from another dense detector ({before}, here {dense}); give another --output")
    return earlier


def main() -> None:
    """Parse the arguments, run the scripts, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/, train.json, val.json, test.json")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs; kept between runs")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs/results", help="folder of bccd.json")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the fine-tuning runs; may be none")
    parser.add_argument("--from-surgery", action="store_true", help="fine-tune from the checkpoint of the surgery")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    work = arguments.work.resolve()
    (work / "data").mkdir(parents=True, exist_ok=True)
    if not (work / "data" / "bccd").exists():
        (work / "data" / "bccd").symlink_to(arguments.data.resolve(), target_is_directory=True)
    bench = Bench(work, arguments.threads)
    start = bench.train("retinanet_r18-thin_bccd", DENSE, [])
    earlier = earlier_figures(arguments.output / "bccd.json", bench.test("dense test", DENSE, start, []))
    row = partial(variant_row, bench, start=start, seeds=arguments.seeds, again=not arguments.from_surgery)
    variants = earlier.get("variants", {}) | {name: row(name) for name in arguments.variants}
    splits = {s: json.loads((work / f"data/bccd/{s}.json").read_text()) for s in ("train", "val", "test")}
    images = ", ".join(f"{len(split['images'])} {name}" for name, split in splits.items())
    facts = {key: earlier[key] for key in ("exported_config", "resumed") if key in earlier} | {
        "command": "python tools/benchmarks/bccd.py --data DATA/bccd --work WORK",
        "data": f"BCCD (red and white blood cells, platelets), images: {images}",
        "model": "RetinaNet, ResNet-18 with 24 base channels, FPN with 48, images of 320x240, from scratch",
        "metric": "CocoMetric of mmdet on the test split, percent",
        "epochs": {"dense": DENSE_EPOCHS, "finetuning": EPOCHS},
        "seeds": {"dense": 0, "finetuning": arguments.seeds},
        "versions": {name: version(name) for name in ("mmdet", "mmcv", "mmengine")},
        "machine": machine() | {"threads": arguments.threads},
        "setup": "in an empty folder: mkdir data; ln -s DATA/bccd data/bccd; MMDET is the folder mmdet/.mim",
        "dense_test": bench.test("dense test", DENSE, start, []),
        "variants": variants,
        "commands": earlier.get("commands", {}) | bench.commands,
    }
    hybrid = "hybrid, rank 5"
    if hybrid in arguments.variants:
        facts["exported_config"] = exported_agrees(bench, hybrid, arguments.seeds[0], variants[hybrid])
        facts["resumed"] = resumed_agrees(bench, hybrid, arguments.seeds[0], start)
    (arguments.output / "bccd.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
