"""Runs that are refused before they start: compression would fail in them later, or silently do nothing."""

from __future__ import annotations

from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn

from norton_plugin.errors import RecipeError
from norton_plugin.mm.classification.datasets import ImageFolder, other_classes
from norton_plugin.mm.classification.packed import PackedImages
from norton_plugin.mm.runner.migration import check_wrapper, unwrap


def check_run(runner: Runner, *, at_epoch: int) -> None:
    """Refuse a run in which the model cannot be compressed.

    Args:
        runner: Before its loop starts.
        at_epoch: Epochs to train densely first.

    Raises:
        RecipeError: A second NortonHook, folders of training and validation images that differ, a wrapper that owns
            the parameters, ``efficient_conv_bn_eval``, a mean teacher, or an ``at_epoch`` that never comes.
    """
    check_wrapper(runner)
    if _count(runner, "NortonHook") > 1:
        raise RecipeError(
            "NortonHook is in this run more than once, perhaps in default_hooks of a base config and in custom_hooks; "
            "keep one, with all settings"
        )
    if not trains(runner):
        return
    if runner.cfg.get("efficient_conv_bn_eval") or _has_efficient_conv_bn_eval(unwrap(runner.model)):
        raise RecipeError(
            "efficient_conv_bn_eval keeps the old convolutions, so compression would change nothing; remove it from "
            "the config"
        )
    if _count(runner, "MeanTeacherHook"):
        raise RecipeError(
            "MeanTeacherHook pairs the parameters of two models; compress the detector in a supervised run first, and "
            "use its exported config as both student and teacher"
        )
    _check_classes(runner)
    if at_epoch:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise RecipeError("at_epoch needs an epoch-based training loop; leave it out to compress at the start")
        if at_epoch >= runner.max_epochs:
            raise RecipeError(f"at_epoch is {at_epoch}, but training ends after {runner.max_epochs} epochs")


def _count(runner: Runner, name: str) -> int:
    """Return how many hooks of a run are of a class of this name, or of one made from it."""
    return sum(any(base.__name__ == name for base in type(hook).__mro__) for hook in runner.hooks)


def _check_classes(runner: Runner) -> None:
    """Refuse folders of training and validation images of different classes."""
    loaders = [getattr(loop, "dataloader", None) for loop in (runner.train_loop, runner.val_loop)]
    sets = [getattr(loader, "dataset", None) for loader in loaders]
    folders = [data for data in sets if isinstance(data, ImageFolder | PackedImages) and data.metainfo["classes"]]
    if len(folders) == 2 and (problem := other_classes(*folders)) is not None:
        raise RecipeError(problem)


def trains(runner: Runner) -> bool:
    """Tell whether ``train`` was called: only then is the training loop built."""
    return isinstance(getattr(runner, "_train_loop", None), BaseLoop)


def resumes(runner: Runner) -> bool:
    """Tell whether training goes on from a checkpoint, optimizer and all."""
    return trains(runner) and bool(getattr(runner, "_resume", False))


def _has_efficient_conv_bn_eval(model: nn.Module) -> bool:
    return any(getattr(module, "efficient_conv_bn_eval_forward", None) is not None for module in model.modules())
