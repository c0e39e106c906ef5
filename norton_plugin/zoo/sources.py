"""Turn a string such as ``timm:resnet18`` into a model, an example input and a recipe to build it again."""

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from norton_plugin.errors import NortonError, SourceError
from norton_plugin.zoo.allocation import BoundedTensors
from norton_plugin.zoo.checkpoint import load_checkpoint_
from norton_plugin.zoo.ecosystem import Ecosystem, failed_build
from norton_plugin.zoo.preprocessing import Preprocessing
from norton_plugin.zoo.stored import parts, shown

ForwardFunction = Callable[[nn.Module, Any], Any]

_KINDS = ("timm", "torchvision", "mmdet", "python", "cifar", "demo")
_EXAMPLE = (
    "expected KIND:NAME, such as timm:resnet18, torchvision:resnet50, cifar:resnet20 or python:package.module:function"
)


@dataclass(frozen=True)
class ModelSource:
    """A model, ready to compress, and how to build it again.

    Attributes:
        model: The model, in eval mode, on the CPU.
        example_inputs: Random tensors of batch 1 that ``model(*example_inputs)`` accepts.
        spec: JSON-able ``{"kind", "name", "kwargs"}`` for :func:`rebuild`.
        preprocessing: Size and normalisation of its images.
        forward_fn: ``(model, example_inputs) -> output`` where a plain call does not run the model, for ``compress``.
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    spec: dict[str, Any]
    preprocessing: Preprocessing
    forward_fn: ForwardFunction | None = None

    @property
    def input_size(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return self.preprocessing.input_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean of images scaled to [0, 1]."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel standard deviation of images scaled to [0, 1]."""
        return self.preprocessing.std


def load_source(
    spec: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> ModelSource:
    """Build the model that ``spec`` names.

    Args:
        spec: ``timm:NAME``, ``torchvision:NAME``, ``mmdet:CONFIG``, ``cifar:NAME``, ``demo:NAME`` or
            ``python:package.module:function``.
        pretrained: Load the published weights of the ecosystem (needs a network or a filled cache).
        checkpoint: A file of weights to load, every name and shape of which must match.
        num_classes: Number of outputs of the classifier; ``None`` keeps the model's own.
        input_size: One side in pixels, (H, W) or (C, H, W); ``None`` keeps the model's own.
        kwargs: Further JSON-able arguments of the constructor.

    Returns:
        The model in eval mode with its example input.

    Raises:
        SourceError: The kind or the name is unknown, the arguments do not fit, or the weights cannot be had.
        MissingExtraError: The ecosystem is not installed.
    """
    if pretrained and checkpoint is not None:
        raise SourceError("both pretrained weights and a checkpoint were asked for; give one of the two")
    if num_classes is not None and num_classes < 1:
        raise SourceError(f"num_classes is {num_classes}, expected at least 1")
    kind, name = _split(spec)
    built = _ecosystem(kind).build(
        name, pretrained=pretrained, num_classes=num_classes, input_size=input_size, kwargs=kwargs
    )
    if checkpoint is not None:
        load_checkpoint_(built.model, checkpoint)
    generator = torch.Generator().manual_seed(0)
    shape = (1, *built.preprocessing.input_size)
    model = _evaluating(built.model)
    example = tuple(torch.randn(shape, generator=generator) for _ in range(built.inputs))
    source = {"kind": kind, "name": name, "kwargs": built.kwargs}
    return ModelSource(model, example, source, built.preprocessing, forward_of(source, model, example))


def forward_of(spec: Mapping[str, Any], model: nn.Module, example_inputs: Sequence[Tensor]) -> ForwardFunction | None:
    """Return how a model of a source is run, before surgery or after it.

    Args:
        spec: :attr:`ModelSource.spec`.
        model: Built from it.
        example_inputs: What it is run on, to find out which parts run.

    Returns:
        ``(model, example_inputs) -> output`` for ``compress``, or ``None`` where a plain call runs the model.
    """
    trace_of = getattr(_ecosystem(spec["kind"]), "trace_of", None)
    if trace_of is None:
        return None
    found: tuple[ForwardFunction, str] | None = trace_of(model, example_inputs[0])
    return None if found is None else _OnFirst(found[0])


class _OnFirst:
    """Runs a trace, which takes one tensor, on the first of several inputs, and so the functions that it brings."""

    def __init__(self, trace: ForwardFunction) -> None:
        self._trace = trace
        self.counted, self.calibrated, self.distilled = (
            self._like(getattr(trace, name, trace)) for name in ("counted", "calibrated", "distilled")
        )

    def _like(self, other: ForwardFunction) -> ForwardFunction:
        return self if other is self._trace else _OnFirst(other)

    def __call__(self, model: nn.Module, inputs: Sequence[Tensor]) -> Any:
        return self._trace(model, inputs[0])


def exported_part(spec: Mapping[str, Any], model: nn.Module) -> tuple[ForwardFunction | None, str]:
    """Return what of a model goes into a file for another runtime.

    Args:
        spec: :attr:`ModelSource.spec`.
        model: Built from it.

    Returns:
        ``(model, example_inputs) -> output``, ``None`` where a plain call does it; and what it covers in words.
    """
    part_of = getattr(_ecosystem(spec["kind"]), "exported_part", None)
    found: tuple[ForwardFunction, str] | None = part_of(model) if part_of is not None else None
    return found or (None, "the whole model")


def inference_of(spec: Mapping[str, Any], model: nn.Module) -> ForwardFunction | None:
    """Return what inference runs where that is more than what is compressed: of detectors, up to the boxes.

    Args:
        spec: :attr:`ModelSource.spec`.
        model: Built from it.

    Returns:
        ``(model, example_inputs) -> output``, ``None`` where :func:`forward_of` runs all.
    """
    found = getattr(_ecosystem(spec["kind"]), "inference_of", None)
    run: ForwardFunction | None = found(model) if found is not None else None
    return None if run is None else _OnFirst(run)


def spec_of(source: ModelSource | Mapping[str, Any] | str) -> dict[str, Any]:
    """Return what builds a model again, checked.

    Args:
        source: From :func:`load_source`, as ``{"kind", "name", "kwargs"}``, or in words, as ``"timm:resnet18"``.

    Raises:
        SourceError: It is none of this, or of an unknown kind.
    """
    if isinstance(source, ModelSource):
        return dict(source.spec)
    if isinstance(source, str):
        kind, name = _split(source)
        source = {"kind": kind, "name": name}
    kind, name, kwargs = parts(source)
    _ecosystem(kind)
    return {"kind": kind, "name": name, "kwargs": kwargs}


def rebuild(spec: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Build the architecture of :attr:`ModelSource.spec` again, with fresh weights and no download.

    Args:
        spec: ``{"kind", "name", "kwargs"}``; it may come from a file of others.
        trust_code: Also call what it names of kind ``python``, which may be any function with any arguments, read a
            config of mmdet that is not in it, and take arguments that name files, however large the model gets.

    Returns:
        The model in eval mode.

    Raises:
        SourceError: A key is absent, code is not trusted, arguments hold more than a model needs, or the model cannot
            be built.
        MissingExtraError: The ecosystem is not installed.
    """
    kind, name, kwargs = parts(spec)
    ecosystem = _ecosystem(kind)
    try:
        with contextlib.nullcontext() if trust_code else BoundedTensors():
            model = ecosystem.rebuild(name, kwargs, trust_code=trust_code)
    except NortonError:
        raise
    except Exception as error:  # what came with an artefact may break a constructor in any way
        raise failed_build(kind, name, error) from error
    return _evaluating(model)


def _evaluating(model: nn.Module) -> nn.Module:
    model.eval()  # returns nothing where a model overrides train() carelessly
    return model


def list_models(kind: str) -> list[str]:
    """Return the names one ecosystem offers; empty for ``python``."""
    return _ecosystem(kind).names()


def _split(spec: str) -> tuple[str, str]:
    kind, colon, name = spec.partition(":")
    if not colon or not name:
        raise SourceError(f"{spec!r} is not a model source; {_EXAMPLE}")
    return kind, name


def _ecosystem(kind: str) -> Ecosystem:
    if kind not in _KINDS:
        raise SourceError(
            f"unknown kind of model source {shown(kind)}, expected one of {', '.join(_KINDS)}; {_EXAMPLE}"
        )
    return cast(Ecosystem, importlib.import_module(f".{kind}", __package__))
