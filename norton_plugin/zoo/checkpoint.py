"""Read weights from a file and put them into a model, all or nothing."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo.ecosystem import first_line
from norton_plugin.zoo.mmengine_globals import mmengine_globals
from norton_plugin.zoo.versions import with_versions

_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "net")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 6
_WRAPPED = "model."  # of a classifier in a run of mmengine


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or from a file of ``torch.save``.

    Nothing in the file is executed (``weights_only=True``). Common wrappers such as ``{"state_dict": ...}``
    and prefixes such as ``module.`` are taken off.

    Args:
        path: The file.

    Returns:
        Names and tensors, on the CPU.

    Raises:
        SourceError: The file is absent, damaged, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"checkpoint {str(path)!r} is not a file; give the path of a .safetensors, .pt or .pth file")
    return _unwrap(_read(path), path)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with mmengine_globals():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"checkpoint {str(path)!r} cannot be read safely ({first_line(error)}); it is damaged or holds "
            "pickled objects: save it again as a plain state dict"
        ) from error
    except Exception as error:  # safetensors, zip and tar readers each raise their own kinds
        raise SourceError(f"checkpoint {str(path)!r} cannot be read: {first_line(error)}") from error


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(len(_WRAPPERS)):
        inner = next((content[k] for k in _WRAPPERS if isinstance(content, Mapping) and _is_dict(content, k)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise SourceError(f"checkpoint {str(path)!r} holds a {type(content).__name__}, expected a state dict")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise SourceError(
            f"checkpoint {str(path)!r} holds no tensors, only the keys {_listed(list(map(str, content)))}; "
            f"expected a state dict, bare or under one of {', '.join(_WRAPPERS)}"
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: value for name, value in state.items()}
    return state


def _is_dict(content: Mapping[str, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def load_checkpoint_(model: nn.Module, path: str | Path) -> None:
    """Load a file's weights into ``model``; every name and shape must match, else the model is unchanged.

    Args:
        model: The model to fill, in place.
        path: A file as for :func:`read_state_dict`.

    Raises:
        SourceError: Names are missing or unexpected, or shapes differ; all three are listed.
    """
    own = model.state_dict()
    state = _of_the_model(read_state_dict(path), own)
    # num_batches_tracked was added to BatchNorm late; old files lack it and eval does not read it
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        told = "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in parts if names)
        raise SourceError(
            f"checkpoint {str(path)!r} does not fit the model: {told}. Check the model's name and number of classes"
        )
    model.load_state_dict(with_versions(state, model), strict=False)


def _of_the_model(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights inside of a wrapper such as ``TimmClassifier``, where these are what the model has."""
    inner = {name.removeprefix(_WRAPPED): value for name, value in state.items() if name.startswith(_WRAPPED)}
    others = [name for name in state if not name.startswith((_WRAPPED, "data_preprocessor."))]
    return inner if inner and not others and not any(name in own for name in state) else state


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
