"""BatchNorm statistics corrected against the dense model on the same images (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.held_tensors import HeldMemory, tensors_of
from norton_plugin.calibration.lockstep import PausableRun, started, watched
from norton_plugin.modules.running import ForwardFunction, run_model
from norton_plugin.surgery.removed import RemovedChannels

# Channels that vary less than this share of the mean variance have no scale to be corrected by.
_LEAST_VARIANCE = 1e-6
_MOST_SCALE = 5.0


def correct_batch_norm_(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Sequence[Any],
    *,
    example_inputs: Any,
    call: Callable[[nn.Module, Any], Any],
    forward_fn: ForwardFunction | None = None,
    removed: Mapping[str, RemovedChannels] | None = None,
    memory: int | None = None,
) -> int:
    """Set running statistics so that every normalised channel has the dense model's mean and variance, in place.

    If the dense model's channel has mean m and variance v on the images where its norm holds mu and s^2, and the
    compressed model's has m' and v', the norm gets ``s'^2 = s^2 v' / v`` and ``mu' = m' + (mu - m) sqrt(v' / v)``.
    Plain re-estimation would replace statistics of the training set by those of a few images; this keeps them.

    Args:
        dense: In evaluation mode.
        compressed: Changed: running statistics of norms that are called once.
        batches: Calibration batches.
        example_inputs: Shows the order of the norms.
        call: Runs a model on a batch.
        forward_fn: Replaces the plain call on the example.
        removed: What pruning took from which norm.
        memory: Most bytes that the passes of both models hold to go on, the rest lies on disk; None for half of what is
            available.

    Returns:
        How many norms were corrected.
    """
    own = dict(compressed.named_modules())
    pairs: list[tuple[Any, Any, list[int]]] = []
    for name, norm in _order(dense, partial(run_model, dense, example_inputs, forward_fn)):
        kept = (removed or {}).get(name, RemovedChannels()).kept_outputs(len(norm.running_mean))
        mean = getattr(own.get(name), "running_mean", None)
        if mean is not None and len(mean) == len(kept):
            pairs.append((norm, own[name], kept))
    corrected = 0
    with watched([norm for pair in pairs for norm in pair[:2]]):
        dense_runs = [partial(call, dense, batch) for batch in batches]
        own_runs = [partial(call, compressed, batch) for batch in batches]
        held = HeldMemory(memory, given=tensors_of(dense, compressed, batches))
        with started(dense_runs, memory=held) as first, started(own_runs, memory=held) as second:
            for norm, mine, kept in pairs:
                both = [
                    (a, b)
                    for a, b in zip(first, second, strict=True)
                    if a.until(norm, "before") & b.until(mine, "before")
                ]
                if both:
                    before, after = (_statistics(runs) for runs in zip(*both, strict=True))
                    _correct_(mine, norm, before, after, kept)
                    corrected += 1
    return corrected


def _order(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, Any]]:
    """Return the BatchNorms that one run calls once, in the order of their calls."""
    norms: dict[nn.Module, str] = {
        m: n
        for n, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    }
    called: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda module, _: called.append(module)) for m in norms]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [(norms[m], m) for m in called if called.count(m) == 1]


def _statistics(runs: Sequence[PausableRun]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of what runs stand before, over all batches."""
    sums, count = [], 0
    for x in _inputs_of(runs):
        sums.append(x.double().sum(1))
        count += x.shape[1]
    mean = torch.stack(sums).sum(0) / count
    squares = torch.stack([(x.double() - mean[:, None]).square().sum(1) for x in _inputs_of(runs)])
    return mean, squares.sum(0) / count


def _inputs_of(runs: Sequence[PausableRun]) -> Iterator[Tensor]:
    """Yield the input of each run as (C, values); what was read of one is let go of before the next."""
    for run in runs:
        yield run.inputs[0].transpose(0, 1).flatten(1)
        run.rest()


def _correct_(
    norm: nn.Module, original: nn.Module, dense: tuple[Tensor, ...], own: tuple[Tensor, Tensor], kept: list[int]
) -> None:
    mean, variance = (statistic[kept] for statistic in dense)
    own_mean, own_variance = own
    stored_mean: Tensor = original.running_mean[kept]  # type: ignore[index]
    stored_var: Tensor = original.running_var[kept]  # type: ignore[index]
    least = _LEAST_VARIANCE * variance.mean()
    alive = (variance > least) & (own_variance > least)
    ratio = torch.where(alive, own_variance / variance.clamp_min(least), 1.0)
    ratio = ratio.clamp(_MOST_SCALE**-2, _MOST_SCALE**2)
    old_eps, eps = float(original.eps), float(norm.eps)  # type: ignore[arg-type]
    with torch.no_grad():
        norm.running_mean.copy_(own_mean + (stored_mean.double() - mean) * ratio.sqrt())  # type: ignore[operator]
        norm.running_var.copy_(((stored_var.double() + old_eps) * ratio - eps).clamp_min(0.0))  # type: ignore[operator]
