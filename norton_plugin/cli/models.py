"""The model a command works on: built from a source, or loaded from an artefact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.artifact import MANIFEST, Manifest, check_replaceable, save
from norton_plugin.artifact.opening import open_model_of
from norton_plugin.errors import ArtifactError, SourceError
from norton_plugin.modules.running import ForwardFunction
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import diff
from norton_plugin.zoo import Preprocessing, input_facts, load_checkpoint_, load_source, rebuild
from norton_plugin.zoo.class_scores import class_scores

AS_BUILT = "as built"


@dataclass(frozen=True)
class Opened:
    """A model ready to work on.

    Attributes:
        model: In eval mode, on the CPU.
        example_inputs: Random tensors of batch 1.
        preprocessing: Size and normalisation of its images.
        spec: How to build the dense original.
        name: For people: the source, or the directory.
        weights: ``"random"``, ``"as built"`` (by a function of the user's, which may load some), ``"pretrained"``, or
            the file or directory they came from.
        manifest: Of the artefact, None for a source.
        forward_fn: ``(model, example_inputs) -> output`` where a plain call does not run the model.
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    preprocessing: Preprocessing
    spec: dict[str, Any]
    name: str
    weights: str
    manifest: Manifest | None = None
    forward_fn: ForwardFunction | None = None


def open_model(
    source: str,
    *,
    pretrained: bool = False,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    input_size: tuple[int, ...] | int | None = None,
    seed: int = 0,
    trust_code: bool = False,
) -> Opened:
    """Build a source, or load an artefact.

    Args:
        source: As of ``zoo.load_source``, or a directory that holds an artefact.
        pretrained: Load published weights.
        checkpoint: Load weights from a file.
        num_classes: Outputs of the classifier.
        input_size: One side, (H, W) or (C, H, W) in pixels.
        seed: Of weights that are not loaded.
        trust_code: Run the function that an artefact names.

    Raises:
        SourceError: The model cannot be had, or options are given that an artefact decides itself.
        ArtifactError: The artefact is damaged.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if _is_directory(source):
            settled = {"--pretrained": pretrained, "--checkpoint": checkpoint, "--num-classes": num_classes}
            given = [option for option, value in {**settled, "--input-size": input_size}.items() if value]
            if given:
                raise SourceError(
                    f"{', '.join(given)} cannot be changed: {source} is an artefact; give a source instead"
                )
            return _open_artefact(Path(source), trust_code=trust_code)
        built = load_source(
            source, pretrained=pretrained, checkpoint=checkpoint, num_classes=num_classes, input_size=input_size
        )
    drawn = AS_BUILT if built.spec["kind"] == "python" else "random"
    weights = "pretrained" if pretrained else drawn if checkpoint is None else str(checkpoint)
    return Opened(
        built.model,
        built.example_inputs,
        built.preprocessing,
        built.spec,
        source,
        weights,
        forward_fn=built.forward_fn,
    )


def _is_directory(source: str) -> bool:
    if not source or "\0" in source:
        raise SourceError(
            f"SOURCE is {source!r}; expected KIND:NAME, such as timm:resnet18, or an artefact's directory"
        )
    try:
        if Path(source, MANIFEST).is_file():
            return True
        folder = Path(source).is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise SourceError(f"{source!r} cannot be read: {error.strerror}") from error
    if folder:
        raise ArtifactError(f"{source} is a directory without {MANIFEST}; expected one that 'norton compress' wrote")
    if ":" not in source:
        raise SourceError(
            f"{source!r} is neither a directory nor a model source; expected KIND:NAME, such as timm:resnet18, or an "
            "artefact that 'norton compress' wrote"
        )
    return False


def _open_artefact(directory: Path, *, trust_code: bool) -> Opened:
    found, name = open_model_of(directory, trust_code=trust_code), str(directory)
    spec = dict(found.manifest.source or {})
    return Opened(
        found.model, found.example_inputs, found.preprocessing, spec, name, name, found.manifest, found.forward_fn
    )


def open_dense(opened: Opened, given: str | None) -> nn.Module:
    """Build the dense original of a model that came from ``open_model``, with its weights.

    Args:
        opened: The model.
        given: ``pretrained`` for the published weights, or a file; None where the weights were random or came from a
            function: they are drawn, or built, again.

    Raises:
        SourceError: The weights cannot be had, or nothing says where to have them.
    """
    spec = opened.spec
    name, kwargs = f"{spec['kind']}:{spec['name']}", spec.get("kwargs")
    if given == "pretrained":
        return load_source(name, pretrained=True, kwargs=kwargs).model
    if given is not None:
        dense = rebuild(spec, trust_code=True)  # it was, when it was opened
        load_checkpoint_(dense, given)
        return dense
    stored = opened.manifest
    weights = stored.extra.get("weights") if stored else opened.weights
    if stored is None or weights not in ("random", AS_BUILT):
        known = f" (they came from {str(weights)[:200]!r})" if isinstance(weights, str) else ""
        raise SourceError(
            f"{opened.name} does not hold the weights of the dense model{known}; give --dense FILE or "
            "--dense pretrained"
        )
    seed = ((stored.recipe or {}).get("decomposition") or {}).get("seed", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed if isinstance(seed, int) else 0)
        return load_source(name, kwargs=kwargs).model


def save_model(
    directory: Path,
    model: nn.Module,
    opened: Opened,
    *,
    recipe: dict[str, Any] | None,
    report: dict[str, Any] | None,
    extra: dict[str, Any],
) -> Path:
    """Write a model that came from ``open_model``, whatever was done to it since, as an artefact.

    Args:
        directory: As of ``artifact.save``.
        model: What became of ``opened.model``.
        opened: Where it came from.
        recipe: As of ``artifact.save``.
        report: As of ``artifact.save``.
        extra: As of ``artifact.save``; what is needed to open the artefact again is added.
    """
    structure = diff(geometry(rebuild(opened.spec, trust_code=True)), geometry(model))
    facts = input_facts(opened.preprocessing, len(opened.example_inputs))
    return save(directory, model, structure, recipe=recipe, report=report, source=opened.spec, extra={**extra, **facts})


def check_one_image(opened: Opened) -> None:
    """Refuse a model that takes several inputs, where a folder of images is read.

    Raises:
        SourceError: It takes several.
    """
    if (count := len(opened.example_inputs)) > 1:
        raise SourceError(
            f"{opened.name} takes {count} inputs, and a folder gives one image at a time; in Python, "
            "norton_plugin.compress(calibration=...) takes batches of any inputs"
        )


def check_classifier(opened: Opened) -> int:
    """Refuse a model that does not map an image to one number per class.

    Returns:
        How many classes the model tells apart.

    Raises:
        SourceError: It is a detector, does not run on images of its size, or returns something else.
    """
    if opened.forward_fn is not None:
        raise SourceError(
            f"{opened.name} is a detector, and this command works on classifiers; train and test it by mmdet's own "
            "tools with the norton hook (norton export-config --help)"
        )
    if type(opened.model).__module__.startswith("torchvision.models.detection."):
        raise SourceError(
            f"{opened.name} is a detector, and this command works on classifiers; norton compare shows what it finds"
        )
    check_one_image(opened)
    size = "x".join(map(str, opened.preprocessing.input_size))
    try:
        with torch.no_grad():
            scores = opened.model(*opened.example_inputs)
    except Exception as error:
        raise SourceError(f"{opened.name} does not run on an input of {size}: {error}") from error
    return class_scores(scores, of=opened.name).shape[1]


def check_directory(directory: Path) -> None:
    """Refuse an output directory before hours of work rather than after.

    Raises:
        ArtifactError: It exists and is no artefact, or a damaged one.
    """
    check_replaceable(directory)
