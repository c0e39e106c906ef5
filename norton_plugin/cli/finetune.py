"""``norton finetune``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from norton_plugin.cli import limits, options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import (
    check_working_folder,
    existing_file_or_pretrained,
    existing_folder,
    read_path,
    working_folder,
)
from norton_plugin.cli.recipes import carry_recipe
from norton_plugin.errors import SourceError

if TYPE_CHECKING:
    from torch import nn

    from norton_plugin.mm import FinetuneSettings

_TRAINING = "Training"
_TEACHER = "Distillation"
_OF_BLOCKS = "Of its blocks' outputs in that share, beside its logits; 0 for the logits alone."
# How typer shows the default of what the level of the model's blocks decides.
_OF_MODEL = "by the model's level"
_OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW"}


def finetune(
    out: Output,
    source: options.SourceArgument,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Training images, one sub-folder per class.",
        ),
    ],
    output: options.OutputDirectory,
    val: Annotated[
        Path | None,
        typer.Option(
            "--val",
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Images to measure accuracy on after each epoch.",
        ),
    ] = None,
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs", max=limits.EPOCHS, metavar="N", help="Passes over the images.", rich_help_panel=_TRAINING
        ),
    ] = 10,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="F",
            help="Learning rate, cosine to zero.",
            show_default=_OF_MODEL,
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    batch_size: options.BatchSize = 128,
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="sgd|adamw",
            help="How weights move.",
            show_default="adamw for decomposed models, else sgd",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(
            "--momentum",
            metavar="F",
            help="Of SGD; of AdamW the first beta, in [0, 1).",
            show_default=_OF_MODEL,
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            metavar="F",
            help="Weight decay.",
            show_default=_OF_MODEL,
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    warmup_epochs: Annotated[
        float | None,
        typer.Option(
            "--warmup-epochs",
            metavar="F",
            help="Epochs of rising rate.",
            show_default=_OF_MODEL,
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    label_smoothing: Annotated[
        float, typer.Option("--label-smoothing", metavar="F", help="In [0, 1).", rich_help_panel=_TRAINING)
    ] = 0.0,
    ema: Annotated[
        float,
        typer.Option("--ema", metavar="F", help="Momentum of averaged weights; 0: none.", rich_help_panel=_TRAINING),
    ] = 0.0,
    clip_grad: Annotated[
        float,
        typer.Option("--clip-grad", metavar="F", help="Largest gradient norm; 0: any.", rich_help_panel=_TRAINING),
    ] = 0.0,
    flip: Annotated[
        bool,
        typer.Option(
            "--flip/--no-flip", help="Mirror small images (large ones always are).", rich_help_panel=_TRAINING
        ),
    ] = True,
    amp: Annotated[
        bool, typer.Option("--amp", help="Half precision, on CUDA devices only.", rich_help_panel=_TRAINING)
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            callback=existing_file_or_pretrained,
            metavar="FILE|pretrained",
            help="Weights of the dense original to learn from as well.",
            rich_help_panel=_TEACHER,
        ),
    ] = None,
    distill_weight: Annotated[
        float, typer.Option("--distill-weight", metavar="F", help="Its share of the loss.", rich_help_panel=_TEACHER)
    ] = 0.9,
    distill_block_weight: Annotated[
        float, typer.Option("--distill-block-weight", metavar="F", help=_OF_BLOCKS, rich_help_panel=_TEACHER)
    ] = 0.0,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            "--work-dir",
            parser=read_path,
            callback=working_folder,
            metavar="DIR",
            help="Checkpoints and logs; by default the output's name and '.work'.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the work dir.")] = False,
    workers: options.Workers = 0,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    trust_code: options.TrustCode = False,
    seed: options.Seed = 0,
) -> None:
    """Fine-tune an artefact (or a dense source) on a folder of images, and write the result as an artefact.

    What --optimizer, --lr, --momentum, --weight-decay and --warmup-epochs do not give is chosen by how far the
    model's filters share components, and shown: AdamW for decomposed models, SGD for others.

    An interrupted run goes on with the same command and --resume.

    Example: norton finetune small --data train --val val --epochs 20 --teacher dense.pth -o small-tuned
    """
    from norton_plugin.cli.images import is_packed, open_images
    from norton_plugin.cli.models import check_classifier, check_directory, open_dense, open_model, save_model
    from norton_plugin.mm import FinetuneSettings
    from norton_plugin.mm import finetune as train
    from norton_plugin.mm.classification.finetune import can_resume

    settings = FinetuneSettings(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        optimizer=None if optimizer is None else _OPTIMIZERS.get(optimizer.lower(), optimizer),
        momentum=momentum,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        label_smoothing=label_smoothing,
        ema=ema,
        clip_grad=clip_grad,
        amp=amp,
        distill_weight=distill_weight,
        distill_block_weight=distill_block_weight,
        num_workers=workers,
        seed=seed,
    )
    folder = work_dir or output.with_name(output.name + ".work")
    check_directory(output)
    check_working_folder("the work dir", folder, apart_from=output)
    if resume and not can_resume(folder):
        out.warn(f"{folder} holds no checkpoint to go on from: training starts at the first epoch")
    with out.status(f"building {source}"):
        opened = open_model(
            source,
            pretrained=pretrained,
            checkpoint=checkpoint,
            num_classes=num_classes,
            input_size=options.parse_input_size(input_size),
            trust_code=trust_code,
            seed=seed,
        )
        check_classifier(opened)
        if is_packed(opened.preprocessing):
            padding = max(opened.preprocessing.input_size[-2:]) // 8
            settings = settings.replace(flip=flip, crop_padding=padding)
        images = open_images(data, opened.preprocessing, training=True)
        held_out = open_images(val, opened.preprocessing) if val is not None else None
        _check_classes(images, held_out)
        dense = None if teacher is None else open_dense(opened, teacher)
    out.show(_chosen(opened.model, settings))
    with out.counting("fine-tuning") as count, _resumable(out, folder):
        result = train(
            opened.model,
            images,
            held_out,
            settings=settings,
            mean=opened.preprocessing.mean,
            std=opened.preprocessing.std,
            teacher=dense,
            work_dir=folder,
            resume=resume,
            verbose=out.verbose,
            on_epoch=lambda record, epochs: out.note(_line(record, epochs)),
            on_step=count,
        )
    stored, used = opened.manifest, asdict(result.settings)
    measured = {"top1": result.last_top1, "data": str(data), "val": str(val) if val else None}
    save_model(
        output,
        opened.model,
        opened,
        recipe=stored.recipe if stored else None,
        report=stored.report if stored else None,
        extra={**(stored.extra if stored else {}), "finetune": {**used, **measured}},
    )
    carry_recipe(output, stored)
    accuracy = "" if result.last_top1 is None else f", top-1 {result.last_top1:.2f} % (best {result.best_top1:.2f} %)"
    out.show(f"written to {output} after {len(result.history)} epochs, {result.seconds:.1f} s{accuracy}")
    out.result({"artifact": str(output), "work_dir": str(folder), **asdict(result)})


@contextlib.contextmanager
def _resumable(out: Output, folder: Path) -> Iterator[None]:
    """While entered, an interrupt says how to go on, where an epoch was finished."""
    from norton_plugin.mm.classification.finetune import can_resume

    try:
        yield
    except KeyboardInterrupt:
        if can_resume(folder):
            out.note(f"the last finished epoch is kept in {folder}; the same command with --resume goes on from it")
        raise


def _check_classes(train: Any, val: Any) -> None:
    from norton_plugin.mm.classification.datasets import other_classes

    if val is not None and (problem := other_classes(train, val)) is not None:
        raise SourceError(problem)


def _chosen(model: nn.Module, settings: FinetuneSettings) -> str:
    """Say what the model is trained with."""
    from norton_plugin.mm.runner.levels import level_of

    level, choice = level_of(model), settings.choice_for(model)
    model_is = "no layer is decomposed" if level == "dense" else f"decomposed at the {level} level"
    return (
        f"{model_is}: {choice.optimizer}, learning rate {choice.lr:g}, momentum {choice.momentum:g}, "
        f"weight decay {choice.weight_decay:g}, warm-up {choice.warmup_epochs:g} epochs"
    )


def _line(record: Any, epochs: int) -> str:
    accuracy = "" if record.top1 is None else f", top-1 {record.top1:.2f} %"
    return f"epoch {record.epoch}/{epochs}: loss {record.loss:.4f}{accuracy} ({record.seconds:.1f} s)"
