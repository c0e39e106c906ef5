"""A compressed model learns from the dense one on unlabelled images, and keeps it where that helps on others."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear, all_in_form, balance_
from norton_plugin.calibration import Comparison, batch_size, split_batches
from norton_plugin.calibration.lockstep import failures_explained
from norton_plugin.distillation.objective import Objective
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import evaluating, traceable

logger = logging.getLogger(__name__)

Call = Callable[[nn.Module, Any], Any]
# As in the experiments (docs/method.md, section 3): second moments of short runs, and a guard against single batches.
_BETAS = (0.9, 0.99)
_RISE = 0.1
_LARGEST_GRADIENT = 5.0
# Where a rate does not help on images held back, lower ones are tried: the less was lost, the lower it has to be.
_LOWER = 0.3
_ATTEMPTS = 3


@dataclass(frozen=True)
class DistillationReport:
    """What distillation did.

    Attributes:
        passes: Over the images.
        lr: Highest rate, of the last attempt.
        steps: Of the optimizer, likewise.
        images: Images learned from.
        held_back: Images that the choice was made on.
        blocks: Names of the blocks whose outputs were compared.
        divergence: On those held back, how far the outputs are from the dense model's
            (``calibration.divergence``), ``"before"`` and ``"after"``.
        kept: Which of them is kept.
        seconds: Wall-clock time.
    """

    passes: int
    lr: float
    steps: int
    images: int
    held_back: int
    blocks: tuple[str, ...]
    divergence: dict[str, float]
    kept: str
    seconds: float


def distill_(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Any],
    *,
    call: Call,
    passes: int = 2,
    lr: float = 1e-4,
    temperature: float = 2.0,
    block_weight: float = 1.0,
    seed: int = 0,
    admits: Callable[[str], bool] = lambda name: True,
    on_step: Callable[[int, int], None] | None = None,
) -> DistillationReport:
    """Train a compressed model towards the dense one's outputs for a short while, in place.

    Adam at a low rate, one cycle, from factors of equal root mean squares (``blocks.balance_``). Both models run in
    evaluation mode: norms keep their running statistics, for those are of the training set, or were corrected to be,
    while those of single small batches would be noisy and unlike the dense model's; their scales and shifts learn. Of
    every eight batches one is held back, and what does not bring the outputs nearer to the dense model's there is
    undone.

    Args:
        dense: The dense model; it is run and left as it is.
        compressed: Changed: parameters that need a gradient.
        batches: Unlabelled images; each is one step of a pass. All are held.
        call: Runs a model on a batch.
        passes: Over the batches, at least 1.
        lr: Highest rate; where it does not help, 0.3 and then 0.09 of it are tried.
        temperature: Of the softmax over logits.
        block_weight: Of the blocks' outputs (``objective.Objective``).
        seed: Of the order of the batches; equal seeds give equal results.
        admits: Tells of a dotted name whether a module that is no block of factors may be changed.
        on_step: Told how many steps of how many are done.

    Raises:
        SurgeryError: No image, nothing that may learn, or a model that does not run on them; the compressed model is
            as it was then.
    """
    start = time.perf_counter()
    learned, held_back = split_batches(list(batches))
    if not learned:
        raise SurgeryError("there is no image to learn from; give some hundred, or no distillation")
    parameters = _learning(compressed, admits)
    before = [parameter.detach().clone() for parameter in parameters]
    objective = Objective(dense, compressed, call, temperature=temperature, block_weight=block_weight)
    try:
        with traceable(dense), evaluating(compressed), all_in_form(compressed, "dense"):
            comparison = Comparison(dense, held_back or learned, call)
            found = {"before": comparison.of(compressed)}
            balance_(compressed)
            balanced = [parameter.detach().clone() for parameter in parameters]
            for attempt in range(_ATTEMPTS):
                rate = lr * _LOWER**attempt
                _restore_(parameters, balanced)
                settings: dict[str, Any] = {"passes": passes, "lr": rate, "seed": seed}
                steps = _train_(parameters, objective, learned, on_step=on_step, **settings)
                found["after"] = comparison.of(compressed)
                if found["after"] < found["before"]:  # NaN is not less
                    break
    except BaseException:
        _restore_(parameters, before)
        raise
    kept = "after" if found["after"] < found["before"] else "before"
    if kept == "before":
        _restore_(parameters, before)
    return DistillationReport(
        passes=passes,
        lr=rate,
        steps=steps,
        images=sum(map(batch_size, learned)),
        held_back=sum(map(batch_size, held_back)),
        blocks=objective.compared,
        divergence=found,
        kept=kept,
        seconds=time.perf_counter() - start,
    )


def _train_(
    parameters: Sequence[nn.Parameter],
    objective: Objective,
    batches: Sequence[Any],
    *,
    passes: int,
    lr: float,
    seed: int,
    on_step: Callable[[int, int], None] | None,
) -> int:
    """Train parameters; return the number of steps, which ends early where the loss is not finite."""
    generator = torch.Generator().manual_seed(seed)
    steps = passes * len(batches)
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=_BETAS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=_RISE)
    order = [index for _ in range(passes) for index in torch.randperm(len(batches), generator=generator).tolist()]
    for done, index in enumerate(order):
        with failures_explained(), torch.enable_grad():
            loss = objective(batches[index])
        if not loss.requires_grad:
            raise SurgeryError(
                "no gradient leads from the model's outputs to its layers, so that it cannot learn from the dense one; "
                "leave distillation out, or give a forward_fn whose outputs depend on them"
            )
        if not math.isfinite(float(loss)):
            logger.warning("distillation stops at step %d: the loss is not finite; a lower rate may help", done)
            return done
        gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if on_step is not None:
            on_step(done + 1, steps)
    return steps


def _learning(model: nn.Module, admits: Callable[[str], bool]) -> list[nn.Parameter]:
    """Return the parameters that may change."""
    found: dict[nn.Parameter, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, ConvBlock | CPDLinear) or admits(name):
            found |= dict.fromkeys(p for p in module.parameters(recurse=False) if p.requires_grad)
    floating = [parameter for parameter in found if parameter.is_floating_point()]
    if not floating:
        raise SurgeryError(
            "no parameter that may be changed needs a gradient, so that nothing can learn; call "
            "model.requires_grad_(True), or leave distillation out"
        )
    return floating


def _restore_(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
