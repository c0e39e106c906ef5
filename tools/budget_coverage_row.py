"""One row of the coverage of budgets: a model compressed to a share of its MACs on unlabelled images.

Status: ``met`` the share is within 2 % of the budget, ``below`` it is further below, ``minimum`` the budget is out of
reach, the least that can be reached was said, and a second run with that least as budget met it, ``over`` the budget
was not met, ``refused`` another error of ours, ``not buildable``, ``error``, ``timeout`` and ``memory`` as in
coverage_row.py.
"""

from __future__ import annotations

import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from coverage_row import failure, load_disturbed

STATUSES = ("met", "below", "minimum", "over", "refused", "not buildable", "error", "timeout", "memory")
PLANS = ("decomposition", "both phases")
# Share of the budget by which it may be missed.
_NEAR = 0.02
_BATCH = 4
_LEAST = re.compile(r"the least that can be reached is ([0-9.]+)")


def examine(source: str, settings: dict[str, Any], *, macs: float, images: int, plan: str) -> dict[str, Any]:
    """Compress one model to a budget and describe the outcome.

    Args:
        source: Such as ``timm:resnet18``.
        settings: ``size`` of its images; where it needs them ``kwargs`` of its constructor, changes of its ``config``
            by dotted keys, and the layers to ``exclude``.
        macs: The budget, as a share of the dense model's.
        images: Random calibration images.
        plan: One of ``PLANS``.

    Returns:
        The row: JSON-able.
    """
    from norton_plugin import NortonError

    row: dict[str, Any] = {"model": source, "plan": plan, "asked": macs, "images": images}
    try:
        loaded = load_disturbed(source, input_size=settings["size"], kwargs=_kwargs(source, settings))
    except NortonError as error:
        return row | failure("not buildable", str(error))
    row["size"] = list(loaded.input_size)
    wall, processor = time.perf_counter(), time.process_time()
    try:
        scope = tuple(settings.get("exclude", ()))
        row |= _compressed(loaded, macs=macs, images=images, prune=plan != PLANS[0], exclude=scope)
    except NortonError as error:
        row |= failure("refused", str(error))
    except Exception as error:  # an exception of another kind is what this tool looks for
        row |= failure("error", f"{type(error).__name__}: {error}")
    row["wall_seconds"] = round(time.perf_counter() - wall, 1)
    row["processor_seconds"] = round(time.process_time() - processor, 1)
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def _kwargs(source: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return arguments of the constructor; those of mmdet hold the whole config, with its changes."""
    changes: dict[str, Any] = settings.get("config", {})
    if not changes:
        given: dict[str, Any] | None = settings.get("kwargs")
        return given
    from norton_plugin.zoo.mmdet_configs import read, to_json

    config = to_json(read(source.partition(":")[2]))
    for key, value in changes.items():
        *path, last = key.split(".")
        part = config
        for name in path:
            part = part[name]
        part[last] = value
    return {"model": config}


def _compressed(loaded: Any, *, macs: float, images: int, **asked: Any) -> dict[str, Any]:
    """Return the cells of a model; where the budget is out of reach, those of the least that was said."""
    from norton_plugin.errors import RecipeError

    batches = _settled_batches(loaded, images)
    try:
        result = _compress(loaded, batches, macs, **asked)
    except RecipeError as error:
        least = _LEAST.search(str(error))
        if least is None or float(least[1]) >= 1:
            return failure("minimum" if least else "refused", str(error))
        reached = float(least[1])
        found = _cells(_compress(loaded, batches, reached, **asked), loaded, reached)
        return found | {"status": "over" if found["status"] == "over" else "minimum", "reason": str(error)[:300]}
    return _cells(result, loaded, macs)


def _settled_batches(loaded: Any, images: int) -> list[Any]:
    """Return random images, and give norms the statistics that these have: fresh ones let activations explode."""
    import torch

    from norton_plugin.calibration import reestimate_batch_norm_
    from norton_plugin.modules.running import calibrated_by, run_model

    generator = torch.Generator().manual_seed(1)
    count = max(1, images // _BATCH)
    shape = (min(images, _BATCH), *loaded.input_size)
    batches = [tuple(torch.rand(shape, generator=generator) for _ in loaded.example_inputs) for _ in range(count)]
    forward_fn = calibrated_by(loaded.forward_fn)
    reestimate_batch_norm_(loaded.model, batches, call=lambda model, batch: run_model(model, batch, forward_fn))
    return batches


def _compress(loaded: Any, batches: list[Any], macs: float, *, prune: bool, exclude: tuple[str, ...]) -> Any:
    from norton_plugin import compress
    from norton_plugin.recipe import Budget, Calibration, Decomposition, Recipe, Scope

    recipe = Recipe(
        scope=Scope(exclude=exclude),
        decomposition=Decomposition(level="layer", linear=True, sweeps=20, restarts=1),
        budget=Budget(macs=macs, prune=prune),
        calibration=Calibration(fit=True),
    )
    told = {"on_step": lambda name: print(f"step: {name}", file=sys.stderr, flush=True)}
    settings = {"calibration": batches, "forward_fn": loaded.forward_fn, **told}
    return compress(loaded.model, loaded.example_inputs, recipe, **settings)


def _cells(result: Any, loaded: Any, budget: float) -> dict[str, Any]:
    """Cells of a compressed model."""
    report = result.report
    share, fitted = report.macs_after / report.macs_before, report.calibration
    status = "over" if share > budget * (1 + _NEAR) else "below" if share < budget * (1 - _NEAR) else "met"
    targets = Counter(f"{layer.target}: {_worded(layer.note)}".rstrip(": ") for layer in fitted.layers)
    return {
        "status": status,
        "budget": budget,
        "macs_share": round(share, 4),
        "parameters_share": round(report.parameters_after / report.parameters_before, 4),
        "planned_share": round(report.budget.macs, 4),
        "phases": report.budget.phases,
        "decomposed": len(report.decomposition.layers),
        "pruned": len(report.pruning.groups),
        "fitted": dict(targets.most_common()),
        "left": dict(Counter(_worded(reason) for _, reason in fitted.left).most_common()),
        "kept": fitted.chosen,
        "divergence": {stage: float(f"{value:.4g}") for stage, value in fitted.divergence.items()},
        "loads_equal": _loads_equal(result, loaded),
        "reason": "",
    }


def _worded(reason: str) -> str:
    """Return a reason without the numbers of the one layer."""
    return re.sub(r"\b\d+\b", "n", reason)


def _loads_equal(result: Any, loaded: Any) -> bool:
    """Tell whether the artefact, saved and loaded, computes the very same outputs."""
    import torch

    import norton_plugin
    from norton_plugin.modules.running import counted_by, output_tensors, run_model, traceable

    def outputs(model: Any) -> list[Any]:
        with traceable(model):
            found = run_model(model, loaded.example_inputs, counted_by(loaded.forward_fn))
        return output_tensors(found)

    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "artefact", source=loaded)
        again = norton_plugin.load(Path(folder) / "artefact", trust_code=True)
    pairs = list(zip(outputs(result.model), outputs(again), strict=True))
    return all(torch.equal(mine, other) for mine, other in pairs)
