"""Fine-tune a classifier on mmengine's Runner."""

import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.utils.data import Dataset

from norton_plugin.artifact.folder_lock import sole_writer
from norton_plugin.blocks import balance_
from norton_plugin.errors import RecipeError, SourceError
from norton_plugin.mm.classification.classifier import TimmClassifier
from norton_plugin.mm.classification.loading import check_data, make_classifier, make_loader, pick_device
from norton_plugin.mm.classification.memory_format import channels_last_weights, runs_channels_last
from norton_plugin.mm.classification.metrics import TopKAccuracy
from norton_plugin.mm.classification.progress import EpochRecord, RecordHook
from norton_plugin.mm.classification.settings import FinetuneSettings
from norton_plugin.mm.runner.levels import OptimizerChoice
from norton_plugin.mm.runner.optimizer import parameter_groups
from norton_plugin.mm.runner.quiet import QuietRunner, preserved_process
from norton_plugin.mm.runner.step_seed import StepSeedHook


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning run came to.

    Attributes:
        history: One record per epoch, those before a resume included.
        best_top1: Highest accuracy of any epoch, in percent; ``None`` without validation data.
        last_top1: Accuracy after the last epoch, which is what the model now has.
        seconds: Wall-clock time of this call, evaluation included.
        settings: How it was trained, with what the model's level decided.
    """

    history: tuple[EpochRecord, ...]
    best_top1: float | None
    last_top1: float | None
    seconds: float
    settings: FinetuneSettings


def can_resume(work_dir: Path) -> bool:
    """Tell whether a folder holds a checkpoint of a finished epoch: mmengine writes the name of the last one there."""
    return (work_dir / "last_checkpoint").is_file()


def finetune(
    model: nn.Module,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    *,
    settings: FinetuneSettings | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    teacher: nn.Module | None = None,
    work_dir: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    verbose: bool = False,
    on_epoch: Callable[[EpochRecord, int], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> FinetuneResult:
    """Train ``model`` in place; its parameters end at the last epoch's values (or their moving average).

    Thread counts, random states and mmengine's global objects are put back afterwards; the model ends in eval mode on
    the device it came from.

    Args:
        model: A model from normalised images to logits, or a :class:`~norton_plugin.mm.TimmClassifier`.
        train: Images and labels to learn from.
        val: Images and labels to measure on.
        settings: How to train; defaults of :class:`~norton_plugin.mm.FinetuneSettings` when ``None``. What it leaves
            open (optimizer, rate, decay, warm-up) the level of the model's blocks decides.
        mean: Per-channel mean of images in [0, 1]; ``None``: images are not shifted, or as the classifier does.
        std: Per-channel standard deviation of images in [0, 1], likewise.
        teacher: A model of equal outputs to learn from as well.
        work_dir: Folder for logs, ``history.json`` and one checkpoint per epoch (the last is kept);
            ``None`` keeps none.
        resume: Go on from the last checkpoint in ``work_dir``, if there is one; equals a run never interrupted.
        device: ``None`` for CUDA where there is one.
        verbose: Show mmengine's own log.
        on_epoch: Called after each epoch with its record and the number of epochs.
        on_step: Called after each step with the number of steps done and to do.
        **changes: Single values that replace those of ``settings``, such as ``epochs=3, lr=0.02``.

    Returns:
        Accuracy by epoch and time.

    Raises:
        RecipeError: A setting is unknown or out of range, ``resume`` without ``work_dir``, or a loss that became NaN.
        SourceError: Empty data, wrong channels, labels beyond the model's outputs, or nothing to train.
        ArtifactError: Another process trains in ``work_dir``.
    """
    started = time.perf_counter()
    asked = (settings or FinetuneSettings()).replace(**changes)
    choice = asked.choice_for(model)
    chosen = asked.replace(**asdict(choice))
    target = _checked_device(device, chosen, resume=resume, work_dir=work_dir)
    classifier = _classifier_of(model, chosen, mean=mean, std=std)
    for data in (train, val):
        if data is not None:
            check_data(data, classifier)
    chosen = _in_a_format_that_runs(classifier, chosen, train)
    home = next((p.device for p in model.parameters()), target)
    layout = channels_last_weights(classifier.model, wanted=chosen.channels_last)
    alone = nullcontext() if work_dir is None else sole_writer(Path(work_dir), patience=0)
    with alone, preserved_process(), tempfile.TemporaryDirectory() as scratch, layout:
        folder = Path(work_dir) if work_dir is not None else Path(scratch)
        if teacher is not None:
            classifier.set_teacher(teacher.to(target), **chosen.distillation)
        if choice.optimizer == "AdamW":
            balance_(classifier.model)
        record = RecordHook(folder / "history.json", on_epoch=on_epoch, on_step=on_step)
        runner = _runner(
            classifier,
            train,
            val,
            chosen,
            choice,
            folder=folder,
            keep=work_dir is not None,
            resume=resume,
            record=record,
            device=target,
            verbose=verbose,
        )
        try:
            runner.train()
            _take_average_(runner)
        finally:
            classifier.set_teacher(None)
            model.to(home).eval()
    return _result(record, chosen, seconds=time.perf_counter() - started)


def _checked_device(
    device: str | torch.device | None, settings: FinetuneSettings, *, resume: bool, work_dir: str | Path | None
) -> torch.device:
    """Return where to train, or refuse what cannot be done there."""
    target = pick_device(device)
    if resume and work_dir is None:
        raise RecipeError("resume needs the work_dir of the run to go on from")
    if settings.amp and target.type != "cuda":
        raise RecipeError(f"amp needs a CUDA device, but training is on {target}; leave it out")
    return target


def _classifier_of(
    model: nn.Module, settings: FinetuneSettings, *, mean: Sequence[float] | None, std: Sequence[float] | None
) -> TimmClassifier:
    """Wrap the model with the augmentation and the loss of the settings."""
    classifier = make_classifier(
        model,
        mean=mean,
        std=std,
        crop_padding=settings.crop_padding,
        flip=settings.flip,
        channels_last=settings.channels_last,
    )
    classifier.label_smoothing = settings.label_smoothing
    return classifier


def _in_a_format_that_runs(
    classifier: TimmClassifier, settings: FinetuneSettings, train: Dataset[Any]
) -> FinetuneSettings:
    """Return the settings, in contiguous format where the model does not run in channels-last."""
    if not settings.channels_last or runs_channels_last(classifier, train):
        return settings
    classifier.data_preprocessor.channels_last = False
    return settings.replace(channels_last=False)


def _result(record: RecordHook, settings: FinetuneSettings, *, seconds: float) -> FinetuneResult:
    scores = [each.top1 for each in record.records if each.top1 is not None]
    return FinetuneResult(
        history=tuple(record.records),
        best_top1=max(scores, default=None),
        last_top1=scores[-1] if scores else None,
        seconds=seconds,
        settings=settings,
    )


def _runner(
    classifier: TimmClassifier,
    train: Dataset[Any],
    val: Dataset[Any] | None,
    settings: FinetuneSettings,
    choice: OptimizerChoice,
    *,
    folder: Path,
    keep: bool,
    resume: bool,
    record: RecordHook,
    device: torch.device,
    verbose: bool,
) -> QuietRunner:
    workers, seed, size = settings.num_workers, settings.seed, settings.batch_size
    loader = make_loader(train, batch_size=size, training=True, seed=seed, num_workers=workers)
    validation: dict[str, Any] = {}
    if val is not None:
        validation = {
            "val_dataloader": make_loader(val, batch_size=max(size, 256), training=False, num_workers=workers),
            "val_cfg": {},
            "val_evaluator": Evaluator(TopKAccuracy()),
        }
    hooks: list[Any] = [StepSeedHook(seed), record]
    if settings.ema:
        hooks.append(EMAHook(momentum=settings.ema))
    return QuietRunner(
        device=device,
        verbose=verbose,
        model=classifier,
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg={"by_epoch": True, "max_epochs": settings.epochs, "val_interval": settings.val_interval},
        optim_wrapper=_optimizer(classifier, settings, choice),
        param_scheduler=_schedule(settings, choice, len(loader)),
        default_hooks={"checkpoint": CheckpointHook(interval=1, max_keep_ckpts=1) if keep else None},
        custom_hooks=hooks,
        resume=resume and can_resume(folder),
        randomness={"seed": seed},
        # runs that start in the same second would share mmengine's global objects
        experiment_name=f"norton_{uuid.uuid4().hex}",
        **validation,
    )


def _optimizer(classifier: TimmClassifier, settings: FinetuneSettings, choice: OptimizerChoice) -> OptimWrapper:
    groups = parameter_groups(classifier.model, weight_decay=choice.weight_decay, factor_decay=settings.factor_decay)
    if not groups:
        raise SourceError("the model has no parameter that requires a gradient; unfreeze some before fine-tuning")
    optimizer: torch.optim.Optimizer
    if choice.optimizer == "SGD":
        nesterov = choice.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=choice.lr, momentum=choice.momentum, nesterov=nesterov)
    else:
        optimizer = torch.optim.AdamW(groups, lr=choice.lr, betas=(choice.momentum, 0.999))
    clip = {"max_norm": settings.clip_grad} if settings.clip_grad else None
    if settings.amp:
        return AmpOptimWrapper(dtype="float16", optimizer=optimizer, clip_grad=clip)
    return OptimWrapper(optimizer=optimizer, clip_grad=clip)


def _schedule(settings: FinetuneSettings, choice: OptimizerChoice, steps: int) -> list[dict[str, Any]]:
    """Linear warm-up, then a cosine, both counted in steps."""
    total, warm = settings.epochs * steps, round(choice.warmup_epochs * steps)
    cosine = {
        "type": "CosineAnnealingLR",
        "by_epoch": False,
        "begin": warm,
        "end": total,
        "T_max": total - warm,
        "eta_min_ratio": settings.final_lr,
    }
    if not warm:
        return [cosine]
    return [{"type": "LinearLR", "by_epoch": False, "start_factor": 0.1, "begin": 0, "end": warm}, cosine]


def _take_average_(runner: QuietRunner) -> None:
    """Leave the moving average in the model, where there is one."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            runner.model.load_state_dict(hook.ema_model.module.state_dict())
