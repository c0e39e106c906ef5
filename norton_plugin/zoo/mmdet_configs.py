"""Configs of mmdet as data: where they are, how their models are read without a download, and how JSON holds them."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmengine.config import Config

from norton_plugin.errors import MissingExtraError, SourceError
from norton_plugin.zoo.ecosystem import failed_build, unknown_model

_TUPLE = "__tuple__"
# Keys that name a file of weights to fetch while a model is built.
_WEIGHTS = ("pretrained", "teacher_ckpt")
# Packages whose name to import is not their name to install.
_INSTALL = {"skimage": "scikit-image", "cv2": "opencv-python-headless", "PIL": "pillow"}


def names() -> list[str]:
    """Return the config files of the installed mmdet, relative to its ``configs`` and without ``.py``."""
    root = _configs()
    found = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    return sorted(name for name in found if not name.startswith("_base_") and "/" in name)


def read(name: str) -> dict[str, Any]:
    """Return a model's config with all that it needs in it, as plain dicts, lists and tuples; see :func:`opened`."""
    return model_of(opened(name))


def model_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model of a whole config, with all that it needs in it, as plain dicts, lists and tuples."""
    return _with_teacher(without_downloads(config["model"]))


def opened(name: str) -> Config:
    """Return the whole config of a model.

    Args:
        name: A name of :func:`names`, or the path of a config file.

    Raises:
        SourceError: The name is unknown, the file is no config of a model, or a package that it imports is absent.
    """
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        path = _configs() / f"{name.removesuffix('.py')}.py"
    if not path.is_file():
        raise unknown_model("mmdet", name, names())
    try:
        config = Config.fromfile(path, import_custom_modules=False)
        _import_modules(name, config.get("custom_imports"))
    except SourceError:
        raise
    except Exception as error:  # a config is a program
        raise failed_build("mmdet", name, error) from error
    if "model" not in config:
        raise SourceError(f"mmdet:{name} has no `model`; expected the config of a detector")
    return config


def without_downloads(config: Any, *, initialised: bool = True) -> Any:
    """Return a copy of a model's config, as plain dicts, lists and tuples, that fetches no weights.

    Args:
        config: The config, or a part of it.
        initialised: Keep initialisers that only compute. An artefact's model needs none: all weights are stored.
    """
    if isinstance(config, Mapping):
        return {
            key: without_downloads(value, initialised=initialised)
            for key, value in config.items()
            if key not in _WEIGHTS and (key != "init_cfg" or (initialised and not _is_pretrained(value)))
        }
    if isinstance(config, list | tuple):
        kept = (value for value in config if not _is_pretrained(value))
        return type(config)(without_downloads(value, initialised=initialised) for value in kept)
    return config


def _is_pretrained(config: Any) -> bool:
    if not isinstance(config, Mapping):
        return False
    kind = config.get("type")
    name = kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]
    return name in ("Pretrained", "PretrainedInit") or set(config) == {"checkpoint"}


def to_json(config: Any) -> Any:
    """Return what JSON keeps of a config: tuples, which mmdet tells apart from lists, and classes by full names."""
    if isinstance(config, type):
        return f"{config.__module__}.{config.__qualname__}"
    if isinstance(config, Mapping):
        return {key: to_json(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        values = [to_json(value) for value in config]
        return {_TUPLE: values} if isinstance(config, tuple) else values
    return config


def from_json(config: Any) -> Any:
    """Undo :func:`to_json`."""
    if isinstance(config, Mapping):
        if set(config) == {_TUPLE}:
            return tuple(from_json(value) for value in config[_TUPLE])
        return {key: from_json(value) for key, value in config.items()}
    return [from_json(value) for value in config] if isinstance(config, list) else config


def cause(error: BaseException) -> str | None:
    """Why a config cannot be built, where that is an absent package or another version of mmdet; otherwise None."""
    if isinstance(error, TypeError) and re.search(r"unexpected keyword argument|missing \d+ required", str(error)):
        return f"it is not written for the installed mmdet {version('mmdet')} ({error})"
    package = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    if found := re.match(r"(\w+) is not installed", str(error)):  # how mmdet says it
        package = found[1]
    package = package.partition(".")[0]
    if not package or importlib.util.find_spec(package) is not None:
        return None
    return f"it needs {package}, which is not installed; pip install {_INSTALL.get(package, package)}"


def _import_modules(name: str, custom: Mapping[str, Any] | None) -> None:
    """Import what a config asks for, or say which package is absent."""
    imports = (custom or {}).get("imports") or ()
    for module in [imports] if isinstance(imports, str) else imports:
        try:
            importlib.import_module(module)
        except ImportError as error:
            if not (custom or {}).get("allow_failed_imports", False):
                problem = cause(error) or f"{module} cannot be imported: {error}"
                raise SourceError(f"mmdet:{name} cannot be built: {problem}") from error


def _with_teacher(model: dict[str, Any]) -> dict[str, Any]:
    """Put in place what stands in another file: the config of a teacher."""
    teacher = model.get("teacher_config")
    if isinstance(teacher, str):
        # Written relative to the folder that holds `configs`; a path of this machine would be no use in an artefact.
        inside = _configs().parent / teacher
        path = inside if inside.is_file() else Path(teacher)
        model = {**model, "teacher_config": {"model": without_downloads(Config.fromfile(path).model)}}
    return model


def _configs() -> Path:
    spec = importlib.util.find_spec("mmdet")
    folders: Sequence[str] | None = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise MissingExtraError("mmdet is not installed; pip install 'norton-plugin[mmdet]'")
    return Path(folders[0]) / ".mim" / "configs"
