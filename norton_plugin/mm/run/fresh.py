"""Fresh compression of a run's model: decided on the first rank, carried out on every rank, told as it goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.runner import Runner
from torch import nn

from norton_plugin.blocks import balance_
from norton_plugin.mm.run import after_surgery
from norton_plugin.mm.run.decision import Decision, decide
from norton_plugin.mm.run.norm_statistics import NormStatistics
from norton_plugin.mm.run.origin import warn_of_random_weights
from norton_plugin.mm.run.report import log_outcome, log_surgery
from norton_plugin.mm.run.slow_optimizer import warn_of_sgd
from norton_plugin.mm.run.step_log import run_log
from norton_plugin.mm.runner.migration import migrate_, optimizers_of, unwrap
from norton_plugin.mm.runner.optimizer import FactorDecay
from norton_plugin.pipeline import CompressionReport
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.geometry import Geometry, geometry
from norton_plugin.surgery.structure import Structure, apply_structure_, diff

# Optimizers that move every parameter by about the learning rate, whatever its gradient.
_ADAPTIVE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax)


@dataclass(frozen=True)
class Fresh:
    """What NortonHook was told about the compression of a model.

    Attributes:
        recipe: What to do.
        frozen: Also change layers that need no gradient.
        input_size: (H, W) of the image to trace with; None for that of the training data.
        factor_decay: Multiplier of the weight decay for factors.
        evaluate: Validate straight after surgery.
        outputs: Layers whose outputs keep their width.
        dense: Geometry of the dense model, where the one at hand is compressed already.
        norms: Whether statistics are kept in training; decided here.
        named: Settings of the recipe's calibration that the config names itself.
    """

    recipe: Recipe
    frozen: bool
    input_size: Sequence[int] | None
    factor_decay: FactorDecay | None
    evaluate: bool
    norms: NormStatistics
    outputs: tuple[str, ...] = ()
    dense: Geometry | None = None
    named: frozenset[str] = frozenset()


def compress_run_(runner: Runner, told: Fresh) -> tuple[Structure, CompressionReport | None]:
    """Decide on the first rank, change every rank's model alike, calibrate it, and report.

    Args:
        runner: Its model, optimizer and averages are changed in place.
        told: What to do.

    Returns:
        The structure that leads from the dense model to what it is now; the report, None on all ranks but the first.
    """
    trained = not warn_of_random_weights(runner)
    with run_log(runner.logger) as log:
        runner.logger.info("NORTON: surgery begins: %s", _in_words(told.recipe))
        settings: dict[str, Any] = {
            "frozen": told.frozen,
            "input_size": told.input_size,
            "outputs": told.outputs,
            "named": told.named,
        }
        decision = decide(runner, told.recipe, log=log, **settings)
        structure = _change_(runner, decision, told)
        if decision.report is not None:
            log_surgery(runner, decision.report, traced=decision.traced)
        calibration = told.recipe.calibration
        images = 0 if decision.report is None else decision.report.calibration_images
        estimated = calibration.fit or told.recipe.distillation.active  # statistics are those of training images
        if calibration.batch_norm and not estimated:
            log("re-estimating BatchNorm statistics")
            images = after_surgery.reestimate_(runner, structure, images=calibration.images, tell=log.detail)
            estimated = images > 0
        told.norms.decide(runner, estimated=trained and estimated)
        metrics = {}
        if told.evaluate:
            log("validating the model as surgery left it")
            metrics = after_surgery.evaluate(runner, tell=log.detail)
    if decision.report is None:
        return structure, None
    report = replace(decision.report, calibration_images=images)
    log_outcome(runner, report, metrics=metrics)
    return structure, report


def _in_words(recipe: Recipe) -> str:
    """Return what a recipe asks for beyond the defaults, as a config writes it."""
    default, asked = Recipe().to_dict(), recipe.to_dict()
    changed = []
    for section in ("decomposition", "budget", "pruning", "scope", "calibration", "distillation"):
        changed += [f"{key}={value!r}" for key, value in asked[section].items() if value != default[section][key]]
    return ", ".join(changed)


def _change_(runner: Runner, decision: Decision, told: Fresh) -> Structure:
    """Give this rank's model the new structure; optimizer and moving averages go along."""

    def change(live: nn.Module) -> None:
        apply_structure_(live, decision.structure)
        if runner.rank == 0:
            live.load_state_dict(decision.state)
            if any(isinstance(optimizer, _ADAPTIVE) for optimizer in optimizers_of(runner)):
                balance_(live)
        # Wrapping again gives the others the parameters; buffers only where broadcast_buffers is on.
        for tensor in live.state_dict().values():
            broadcast(tensor)

    migration = migrate_(runner, change, factor_decay=told.factor_decay)
    runner.logger.info(
        "NORTON: %d parameters replaced, %d slots of the optimizer renewed, %d moving averages restarted",
        migration.replaced,
        migration.moved,
        migration.averages,
    )
    warn_of_sgd(runner)
    whole = decision.structure if told.dense is None else diff(told.dense, geometry(unwrap(runner.model)))
    structure: Structure = json.loads(json.dumps(whole))
    return structure
