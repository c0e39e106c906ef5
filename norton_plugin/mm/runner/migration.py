"""Changing a model while a Runner holds it: optimizers, wrappers, averages and compiled steps follow.

What refers to a parameter or to the wrapped model has to be told when surgery replaces parameters. One function
does it for both occasions: fresh compression, and the arrival of a compressed checkpoint.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict, _ParamScheduler
from mmengine.runner import Runner, turn_on_activation_checkpointing
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.mm.runner.optimizer import FactorDecay, split_factors_

# Methods that mmengine replaces on single objects: checkpointing wraps forward, torch.compile the training step.
_OVERRIDES = ("forward", "train_step", "val_step", "test_step")
Successors = dict[nn.Parameter, tuple[nn.Parameter, ...]]


@dataclass(frozen=True)
class Migration:
    """What followed a change of the model.

    Attributes:
        replaced: Parameters that became other ones.
        moved: Slots of the optimizers that hold something new.
        rewrapped: Whether the distributed wrapper was made anew.
        averages: Moving averages that were made anew.
    """

    replaced: int
    moved: int
    rewrapped: bool
    averages: int


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside distributed wrappers and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.get_submodule("module")
    return model


def check_wrapper(runner: Runner) -> None:
    """Refuse wrappers that own the parameters.

    Raises:
        RecipeError: FSDP, DeepSpeed, ColossalAI, or one wrapper per sub-module.
    """
    kind = type(getattr(runner, "strategy", None)).__name__
    if kind not in ("NoneType", "SingleDeviceStrategy", "DDPStrategy"):
        raise RecipeError(f"the run uses {kind}, which owns the parameters; {_OFFLINE}")
    if kind != "NoneType":
        raise RecipeError(f"the hook works with mmengine's Runner, not with FlexibleRunner ({kind}); {_OFFLINE}")
    model = runner.model
    plain = isinstance(model, DistributedDataParallel | DataParallel)
    separate = any(isinstance(m, DistributedDataParallel) for m in unwrap(model).modules())
    if is_model_wrapper(model) and (not plain or separate):
        raise RecipeError(f"the model is wrapped in {type(model).__name__}, which cannot be renewed; {_OFFLINE}")


_OFFLINE = (
    "compress the model first without it (a run of a few iterations on one device, or `norton compress`), then train "
    "the exported config"
)


def migrate_(
    runner: Runner, change: Callable[[nn.Module], None], *, factor_decay: FactorDecay | None = None
) -> Migration:
    """Change the runner's model in place, and everything that refers to its parameters with it.

    New parameters take the slots of those they replace, in the same parameter group, so that scaled learning rates,
    multipliers and schedules stay; optimizer state of replaced parameters is dropped. The order of slots depends on
    the model and the change alone, hence is the same in a resumed run.

    Args:
        runner: At any point after its ``__init__``.
        change: Surgery; told the unwrapped model.
        factor_decay: Multiplier of the weight decay for factors (``optimizer.split_factors_``); ``None`` leaves them
            that of the layer they replace.

    Returns:
        What was done.

    Raises:
        SurgeryError: A parameter of an optimizer would belong to nothing.
    """
    model = unwrap(runner.model)
    before = {name: (m, dict(m._parameters)) for name, m in model.named_modules(remove_duplicate=False)}
    change(model)
    successors = _successors(before, model)
    moved = sum(_move_(optimizer, successors, model) for optimizer in optimizers_of(runner))
    if factor_decay is not None:
        for optimizer in optimizers_of(runner):
            split_factors_(optimizer, _schedulers(runner, optimizer), model, factor_decay=factor_decay)
    replaced = {name for name, (old, _) in before.items() if name and model.get_submodule(name) is not old}
    _checkpoint_activations_again_(runner, model, replaced)
    compiled = vars(runner.model).pop("train_step", None) is not None
    wrapped = isinstance(runner.model, DistributedDataParallel)
    if wrapped:
        _wrap_again_(runner, model)
    with plain_instances(model):
        averages = average_again_(runner)
    if compiled:
        torch.compiler.reset()  # code compiled for the old parameters
        runner._maybe_compile("train_step")
    return Migration(len(successors), moved, wrapped, averages)


@contextmanager
def plain_instances(model: nn.Module) -> Iterator[None]:
    """Take methods that were replaced on single objects away for a while.

    A copy of a model would otherwise go on calling the original through them.

    Args:
        model: With everything below it.
    """
    found = [(m, name, vars(m).pop(name)) for m in model.modules() for name in _OVERRIDES if name in vars(m)]
    try:
        yield
    finally:
        for module, name, method in found:
            vars(module)[name] = method


def _successors(before: dict[str, tuple[nn.Module, dict[str, nn.Parameter | None]]], model: nn.Module) -> Successors:
    """Return what each replaced parameter became: one of the same name, or the factors for a weight."""
    after = dict(model.named_modules(remove_duplicate=False))
    found: Successors = {}
    for name, (_, old) in before.items():
        if name not in after:
            raise SurgeryError(f"surgery removed the module {name!r}, whose parameters an optimizer may hold")
        new = after[name]._parameters
        extra = tuple(p for key, p in new.items() if key not in old and p is not None)
        for key, parameter in old.items():
            if parameter is None or parameter in found:
                continue
            successor = new.get(key)
            if successor is not None:
                if successor is not parameter:
                    found[parameter] = (successor,)
            else:
                found[parameter], extra = extra, ()
    return found


def optimizers_of(runner: Runner) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a run; none where it only tests."""
    wrapper = getattr(runner, "optim_wrapper", None)
    if isinstance(wrapper, OptimWrapperDict):
        return [each.optimizer for each in wrapper.values()]
    return [wrapper.optimizer] if isinstance(wrapper, OptimWrapper) else []


def _schedulers(runner: Runner, optimizer: torch.optim.Optimizer) -> list[_ParamScheduler]:
    """Return the schedulers that change this optimizer, which they know by itself or by its wrapper."""
    known = runner.param_schedulers or []
    every = [each for group in known.values() for each in group] if isinstance(known, dict) else list(known)
    return [
        scheduler
        for scheduler in every
        if isinstance(scheduler, _ParamScheduler)
        and optimizer in (scheduler.optimizer, getattr(scheduler.optimizer, "optimizer", None))
    ]


def _move_(optimizer: torch.optim.Optimizer, successors: Successors, model: nn.Module) -> int:
    moved = 0
    for group in optimizer.param_groups:
        moved += sum(p in successors for p in group["params"])
        group["params"] = [new for p in group["params"] for new in successors.get(p, (p,))]
    for old in successors:
        optimizer.state.pop(old, None)
    known = set(model.parameters())
    replaced = {new for news in successors.values() for new in news}
    lost = replaced - known
    if lost:
        raise SurgeryError(f"{len(lost)} new parameters are not part of the model; a change replaced some twice")
    return moved


def _wrap_again_(runner: Runner, model: nn.Module) -> None:
    """Drop the wrapper for good, then make it as the config says: its reducer holds the old parameters."""
    runner.model = model
    gc.collect()
    runner.model = runner.wrap_model(copy.deepcopy(runner.cfg.get("model_wrapper_cfg")), model)


def average_again_(runner: Runner) -> int:
    """Start moving averages anew from the model as it is now; their number."""
    renewed = [hook for hook in runner.hooks if isinstance(hook, EMAHook) and hasattr(hook, "ema_model")]
    for hook in renewed:
        hook.before_run(runner)
    return len(renewed)


def _checkpoint_activations_again_(runner: Runner, model: nn.Module, replaced: set[str]) -> None:
    """Activation checkpointing wraps single modules; a replaced one has to be wrapped again."""
    names = runner.cfg.get("activation_checkpointing") or []
    wanted = [name for name in ([names] if isinstance(names, str) else names) if name in replaced]
    if wanted and optimizers_of(runner):
        turn_on_activation_checkpointing(model, wanted)
