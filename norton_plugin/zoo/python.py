"""Models built by any Python function: ``python:package.module:function``."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo.ecosystem import Built, failed_build, first_line, no_weights
from norton_plugin.zoo.preprocessing import Preprocessing, resolve_input_size
from norton_plugin.zoo.stored import label, not_trusted


def names() -> list[str]:
    """Return no names: every importable function is one."""
    return []


def build(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Built:
    """Call ``function(**kwargs)`` and take the ``nn.Module`` it returns.

    Args:
        name: ``package.module:function``; the current folder is searched too. A class works as well.
        pretrained: Passed on as ``pretrained=True`` when the function takes it, else an error.
        num_classes: Passed on as ``num_classes=`` when given.
        input_size: Size of the images; 3x224x224 when ``None``, or the model's own attribute ``input_size``. Volumes
            and clips are a whole shape (C, D, H, W), here or there.
        kwargs: Further arguments of the function.

    Returns:
        The model; its normalisation is ImageNet's unless it has attributes ``mean`` and ``std``. It takes as many
        inputs as ``forward`` has positional arguments without a default, such as the two of a siamese network, all of
        that size.

    Raises:
        SourceError: The function cannot be imported or called, or returns something else than a module.
    """
    function = _find(name)
    arguments = dict(kwargs or {})
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    extra = {"pretrained": True} if pretrained else {}
    if pretrained and not _takes(function, "pretrained"):
        raise no_weights("python", name, SourceError("the function takes no argument named pretrained"))
    try:
        model = function(**arguments, **extra)
    except Exception as error:  # foreign code: whatever it raises is reported as one line with its cause attached
        raise failed_build("python", name, error) from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"python:{name} returned a {type(model).__name__}, expected a torch.nn.Module")
    default = Preprocessing()
    # A whole shape may be of any number of axes, such as 3x8x112x112 of a clip.
    shapes = (getattr(model, "input_size", None), input_size, default.input_size)
    size = resolve_input_size(input_size, next(shape for shape in shapes if _is_shape(shape)))
    mean, std = (getattr(model, key, getattr(default, key)) for key in ("mean", "std"))
    preprocessing = Preprocessing(size, tuple(mean), tuple(std))
    return Built(model=model, kwargs=arguments, preprocessing=preprocessing, inputs=_required(model.forward))


def rebuild(name: str, kwargs: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Call the function that an artefact names, if it is trusted.

    Raises:
        SourceError: It is not, or the call fails as in :func:`build`.
    """
    if not trust_code:
        raise not_trusted(label("python", name), kwargs)
    return build(name, kwargs=kwargs).model


def exported_part(model: nn.Module) -> tuple[Callable[[nn.Module, Any], Any], str] | None:
    """See :func:`norton_plugin.zoo.torchvision.exported_part`: a function may return one of torchvision's detectors."""
    detectors = _of_detectors()
    return None if detectors is None else detectors.exported_part(model)


def trace_of(model: nn.Module, example: Tensor) -> tuple[Callable[[nn.Module, Any], Any], str] | None:
    """See :func:`norton_plugin.zoo.torchvision.trace_of`."""
    detectors = _of_detectors()
    return None if detectors is None else detectors.trace_of(model, example)


def inference_of(model: nn.Module) -> Callable[[nn.Module, Tensor], Any] | None:
    """See :func:`norton_plugin.zoo.torchvision.inference_of`."""
    detectors = _of_detectors()
    return None if detectors is None else detectors.inference_of(model)


def _of_detectors() -> Any:
    """Return the file of torchvision's models where its detectors are loaded: else a model is none of them."""
    if "torchvision.models.detection" not in sys.modules:
        return None
    return importlib.import_module("norton_plugin.zoo.torchvision")


def _find(name: str) -> Callable[..., Any]:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise SourceError(f"python:{name} is incomplete; expected python:package.module:function")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise SourceError(
            f"python:{name} names a file; expected a module that can be imported from the current folder, such as "
            f"python:{dotted}:{attribute}"
        )
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing foreign code may raise anything
        raise SourceError(f"module {module_name!r} cannot be imported: {first_line(error)}") from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SourceError(
            f"module {module_name!r} has no function {attribute!r}; it has {', '.join(public[:8]) or 'none'}"
        )
    return function


def _takes(function: Callable[..., Any], argument: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == argument or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _required(forward: Callable[..., Any]) -> int:
    """Return how many positional arguments must be given, at least one."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters))


def _is_shape(value: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(value, (tuple, list)) and len(value) >= 3 and all(isinstance(side, int) for side in value)
