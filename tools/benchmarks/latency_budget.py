"""What a budget of milliseconds comes to: predicted, measured in the job, and measured again by itself.

    OMP_NUM_THREADS=1 python tools/benchmarks/latency_budget.py

One image, one thread, random weights, few sweeps (it is the time alone that is asked for), processor time. Written
after every model; models that stand in the file already are left as they are.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from delivered_speed import delivered_speed

from norton_plugin import Budget, Recipe, compress
from norton_plugin.latency import DeliveredModels
from norton_plugin.recipe import Decomposition
from norton_plugin.zoo import load_source

MODELS = {
    "ResNet-18": ("timm:resnet18", 0.5),
    "MobileNetV3-Large": ("timm:mobilenetv3_large_100", 0.8),
    "EfficientNet-B0": ("timm:efficientnet_b0", 0.8),
    "ResNet-50": ("timm:resnet50", 0.5),
}


def measured(name: str, share: float) -> dict[str, Any]:
    """Compress one model within a share of its milliseconds and return what that came to."""
    torch.manual_seed(0)
    source = load_source(name)
    asked = Decomposition(level="auto", restarts=1, sweeps=3)
    start, used = time.perf_counter(), time.process_time()
    recipe = Recipe(budget=Budget(latency=share), decomposition=asked, verify=False)
    model, report = compress(source.model, source.example_inputs, recipe)
    seconds = {"wall_seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - used}
    plan = report.budget
    if plan is None or plan.milliseconds is None or plan.milliseconds.measured is None:
        raise SystemExit(f"{name}: nothing was measured")
    again = DeliveredModels(source.model, source.example_inputs, None).beside_dense(model)
    return {
        "source": name,
        "budget": share,
        "macs_share": report.macs_after / report.macs_before,
        "parameters_share": report.parameters_after / report.parameters_before,
        "dense_milliseconds": plan.milliseconds.dense,
        "predicted_share": plan.latency,
        "measured_share": plan.milliseconds.share,
        "measured_again_share": again.share,
        "plans": plan.milliseconds.plans,
        "speed": delivered_speed(source, model),
        **seconds,
    }


def main() -> None:
    """Measure the models that are not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.output / "latency_budget.json"
    facts = json.loads(path.read_text()) if path.exists() else {"models": {}}
    facts |= {"command": "OMP_NUM_THREADS=1 python tools/benchmarks/latency_budget.py"}
    facts |= {"processor": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    facts |= {"machine": platform.machine(), "image": 224}
    for title in arguments.models:
        if title not in facts["models"]:
            facts["models"][title] = measured(*MODELS[title])
            path.write_text(json.dumps(facts, indent=1) + "\n")
            print(title, {k: v for k, v in facts["models"][title].items() if k != "plans"}, flush=True)


if __name__ == "__main__":
    main()
