"""Models of timm."""

import contextlib
import inspect
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from norton_plugin.errors import MissingExtraError, NortonError
from norton_plugin.zoo.ecosystem import Built, failed_build, no_weights, unknown_model
from norton_plugin.zoo.preprocessing import Preprocessing, resolve_input_size
from norton_plugin.zoo.stored import check_no_weights, check_values, label

try:
    import timm
    from timm.models import build_model_with_cfg
except ImportError as _error:  # pragma: no cover - needs an environment without timm
    raise MissingExtraError("timm is not installed; run: pip install 'norton-plugin[timm]'") from _error


# Arguments of timm's own functions, not of a model: files, addresses and edits of what is known about weights.
_NOT_OF_MODELS = frozenset(
    {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
    - {"kwargs", "scriptable", "exportable", "no_jit"}
)


def names() -> list[str]:
    """Return the architectures that timm knows, without pretrained tags."""
    return list(timm.list_models())


def build(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Built:
    """Build a timm model; arguments as in :func:`norton_plugin.zoo.load_source`.

    Args:
        name: An architecture, with or without a pretrained tag (``resnet50.a1_in1k``).
        pretrained: Load the weights of the tag (the default tag when none is given).
        num_classes: Number of outputs, ``None`` for the tag's own.
        input_size: Size of the images; passed on to models of a fixed size, such as transformers.
        kwargs: Further arguments of ``timm.create_model``.

    Returns:
        The model and its timm data configuration.

    Raises:
        SourceError: Unknown name or tag, arguments that do not fit, weights that cannot be had.
    """
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise unknown_model("timm", name, names())
    if tag and timm.get_pretrained_cfg(base, allow_unregistered=False) is not None:
        tags = timm.list_pretrained(f"{base}.*")
        if tags and name not in tags:
            raise unknown_model("timm", name, tags)
    arguments = dict(kwargs or {})
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if input_size is not None:
        arguments.update(_size_arguments(name, input_size))
    try:
        with _quick_refusal() if pretrained else contextlib.nullcontext():
            model = timm.create_model(name, pretrained=pretrained, **arguments)
    except NortonError:
        raise
    except Exception as error:  # timm and the hub raise many kinds; all mean that this model cannot be had
        if pretrained:
            raise no_weights("timm", name, error) from error
        raise failed_build("timm", name, error) from error
    data = timm.data.resolve_data_config({}, model=model)
    size = resolve_input_size(input_size, data["input_size"])
    if input_size is None:
        size = _own_size(model, size, arguments)
    return Built(
        model=model,
        kwargs=_architecture(model, arguments),
        preprocessing=Preprocessing(
            input_size=size,
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            interpolation=data["interpolation"],
            crop_pct=float(data["crop_pct"]),
        ),
    )


def rebuild(name: str, kwargs: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Build a timm model from stored arguments: any of its constructor, none that timm itself takes for weights.

    Raises:
        SourceError: Other arguments, or as in :func:`build`.
    """
    if not trust_code:
        source = label("timm", name)
        check_no_weights(source, kwargs, _NOT_OF_MODELS)
        check_values(source, kwargs)
    return build(name, kwargs=kwargs).model


def _architecture(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are worth storing: weights were fetched once, and what they decided is written out."""
    own = {key: value for key, value in arguments.items() if key not in _NOT_OF_MODELS}
    settled = {"num_classes": model.num_classes} if hasattr(model, "num_classes") and len(own) < len(arguments) else {}
    return {**settled, **own}


def _size_arguments(name: str, asked: int | Sequence[int]) -> dict[str, Any]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    default = config.input_size if config is not None else (3, 224, 224)
    size = resolve_input_size(asked, default)
    arguments: dict[str, Any] = {}
    if size[0] != default[0]:
        arguments["in_chans"] = size[0]
    if config is not None and config.fixed_input_size and size[1:] != tuple(default[1:]):
        arguments["img_size"] = size[1] if size[1] == size[2] else list(size[1:])
    return arguments


def _own_size(model: Any, size: tuple[int, ...], arguments: Mapping[str, Any]) -> tuple[int, ...]:
    sides = arguments.get("img_size", size[1:])
    channels = arguments.get("in_chans", size[0])
    return resolve_input_size((channels, *((sides, sides) if isinstance(sides, int) else sides)), size)


@contextlib.contextmanager
def _quick_refusal() -> Iterator[None]:
    """Without a network, let the hub look into its cache only: its retries would take most of a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    host = urllib.parse.urlparse(constants.ENDPOINT).hostname
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
