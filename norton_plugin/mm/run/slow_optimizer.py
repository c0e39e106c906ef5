"""A warning where the config's SGD would train factors that filters share: it learns them slowly and badly."""

from __future__ import annotations

import torch
from mmengine.runner import Runner

from norton_plugin.mm.runner.levels import default_choice, level_of, shares_components
from norton_plugin.mm.runner.migration import optimizers_of, unwrap
from norton_plugin.mm.runner.optimizer import factors_of


def warn_of_sgd(runner: Runner) -> None:
    """Warn in the log where an SGD holds factors that filters share, and say what to write instead.

    Call it once, when the optimizer holds the factors. Any SGD is meant, with momentum or without.

    Args:
        runner: After ``migrate_``.
    """
    model = unwrap(runner.model)
    held = {
        id(parameter)
        for optimizer in optimizers_of(runner)
        if isinstance(optimizer, torch.optim.SGD)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    slow = [
        name
        for name, module in model.named_modules()
        if shares_components(module) and any(id(factor) in held for factor in factors_of(module))
    ]
    if not slow:
        return
    choice = default_choice(level_of(model), "AdamW", epochs=1)
    runner.logger.warning(
        "NORTON: SGD will train the factors of %s, whose filters share components (%s%s), and it trains them badly: "
        "a weight is a product of several factors whose gradients differ by orders of magnitude, and no single rate "
        "suits them all. Write optim_wrapper=dict(optimizer=dict(type='AdamW', lr=%g, betas=(%g, 0.999), "
        "weight_decay=%g)) instead (in a child config with _delete_=True in the optimizer's dict), with the rate that "
        "suits your schedule",
        "1 layer" if len(slow) == 1 else f"{len(slow)} layers",
        slow[0],
        " ..." if len(slow) > 1 else "",
        choice.lr,
        choice.momentum,
        choice.weight_decay,
    )
