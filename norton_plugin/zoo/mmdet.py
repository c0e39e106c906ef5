"""Detectors of mmdet by the names of their config files, or from any config file; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from ..errors import MissingExtraError, SourceError
from .ecosystem import Built, failed_build, no_weights, unknown_model
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, resolve_input_size

_INPUT_SIZE = (3, 320, 320)
# A model cannot be built for many reasons: operators of CUDA alone, packages that are absent, arguments of old configs.
_BUILD_ERRORS = (ImportError, KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, OSError)


def names() -> list[str]:
    """Return the config files of the installed mmdet, relative to its ``configs`` and without ``.py``."""
    root = _configs()
    found = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    return sorted(name for name in found if not name.startswith("_base_") and "/" in name)


def build(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Built:
    """Build the detector of a config with fresh weights; arguments as in :func:`norton_plugin.zoo.load_source`.

    Args:
        name: A name of :func:`names`, or the path of a config file.
        pretrained: Not offered: pass the checkpoint.
        num_classes: Not offered: a config sets it in several heads.
        input_size: Size of the example image, 3x320x320 when ``None``. MACs depend on it, what is pruned does not.
        kwargs: ``{"model": ...}``, the model's config, in place of reading ``name`` again.

    Returns:
        The detector and the function that traces its parts.

    Raises:
        SourceError: Unknown name, a config without a model, or a detector that cannot be built here.
        MissingExtraError: mmdet is not installed.
    """
    if pretrained:
        raise no_weights("mmdet", name, SourceError("weights of detectors are given as files"))
    if num_classes is not None:
        raise SourceError("num_classes of a detector is set in its config, where several heads have it; edit it there")
    try:
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
    except ImportError as error:
        raise MissingExtraError(f"mmdet:{name} needs mmdet with mmcv's operators: {error}") from error
    from .detector_parts import trace_of

    arguments = dict(kwargs or {})
    model_config = arguments.get("model") or _read(name)
    register_all_modules(init_default_scope=False)
    size = resolve_input_size(input_size, _INPUT_SIZE)
    try:
        with DefaultScope.overwrite_default_scope("mmdet"):
            model = MODELS.build(ConfigDict(without_downloads(model_config)))
    except _BUILD_ERRORS as error:
        raise failed_build("mmdet", name, error) from error
    return Built(
        model=model.eval(),
        kwargs={"model": without_downloads(model_config)},
        preprocessing=_preprocessing(model_config, size),
        trace=trace_of,
    )


def without_downloads(config: Any) -> Any:
    """A copy of a model's config, as plain dicts and lists, that fetches no weights."""
    if isinstance(config, Mapping):
        return {
            key: without_downloads(value)
            for key, value in config.items()
            if key != "pretrained"
            and not (key == "init_cfg" and isinstance(value, Mapping) and value.get("type") == "Pretrained")
        }
    if isinstance(config, list | tuple):
        return [without_downloads(value) for value in config]
    return config


def _read(name: str) -> Mapping[str, Any]:
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        path = _configs() / f"{name.removesuffix('.py')}.py"
    if not path.is_file():
        raise unknown_model("mmdet", name, names())
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is a program
        raise failed_build("mmdet", name, error) from error
    if "model" not in config:
        raise SourceError(f"mmdet:{name} has no `model`; expected the config of a detector")
    return config.model


def _configs() -> Path:
    spec = importlib.util.find_spec("mmdet")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise MissingExtraError("mmdet is not installed; pip install 'norton-plugin[mmdet]'")
    return Path(folders[0]) / ".mim" / "configs"


def _preprocessing(config: Mapping[str, Any], size: Sequence[int]) -> Preprocessing:
    given = config.get("data_preprocessor") or {}
    mean, std = given.get("mean"), given.get("std")
    return Preprocessing(
        tuple(size),
        IMAGENET_MEAN if mean is None else tuple(value / 255 for value in mean),
        IMAGENET_STD if std is None else tuple(value / 255 for value in std),
    )
