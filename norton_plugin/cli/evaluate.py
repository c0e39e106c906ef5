"""``norton evaluate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from norton_plugin.cli import options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_folder, read_path


def evaluate(
    out: Output,
    source: options.SourceArgument,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Images, one sub-folder per class.",
        ),
    ],
    batch_size: options.BatchSize = 256,
    workers: options.Workers = 0,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Measure top-1 and top-5 accuracy of a model on a folder of images.

    Labels are the sub-folders in alphabetical order.

    Example: norton evaluate resnet18-small --data imagenet/val
    """
    from norton_plugin.cli.images import open_images
    from norton_plugin.cli.models import check_classifier, open_model
    from norton_plugin.mm import evaluate as measure

    with out.status(f"building {source}"):
        opened = open_model(
            source,
            pretrained=pretrained,
            checkpoint=checkpoint,
            num_classes=num_classes,
            input_size=options.parse_input_size(input_size),
            trust_code=trust_code,
        )
        outputs = check_classifier(opened)
        if opened.weights == "random":
            out.warn(f"{source} has random weights; give --pretrained or --checkpoint FILE for trained ones")
        images = open_images(data, opened.preprocessing)
    classes = len(images.metainfo["classes"])
    if classes < outputs:
        out.warn(
            f"{data} has {classes} sub-folders, the model {outputs} classes: the n-th sub-folder in alphabetical order "
            "is taken for the n-th class. If that is not so, the accuracies below mean nothing"
        )
    with out.counting("evaluating") as count:
        found = measure(
            opened.model,
            images,
            mean=opened.preprocessing.mean,
            std=opened.preprocessing.std,
            batch_size=batch_size,
            num_workers=workers,
            on_step=count,
        )
    if found.n < len(images):
        out.warn(f"{len(images) - found.n} of {len(images)} images cannot be read and do not count")
    out.show(
        f"{source} on {data}: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %, loss {found.loss:.4f} "
        f"({found.n} images of {classes} classes, {found.seconds:.1f} s)"
    )
    out.result({"source": opened.spec, "data": str(data), "classes": classes, **asdict(found)})
