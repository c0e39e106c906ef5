"""Detectors of mmdet by the names of their config files, or from any config file; nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..errors import MissingExtraError, SourceError
from .ecosystem import Built, failed_build, no_weights
from .mmdet_configs import cause, check_stored, from_json, names, read, to_json, without_downloads
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, resolve_input_size

_INPUT_SIZE = (3, 320, 320)
# A model cannot be built for many reasons: operators of CUDA alone, packages that are absent, arguments of old configs.
_BUILD_ERRORS = (ImportError, KeyError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, OSError)

__all__ = ["build", "names", "trace_of"]


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
        The detector.

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
    given = dict(kwargs or {}).get("model")
    size = resolve_input_size(input_size, _INPUT_SIZE)
    register_all_modules(init_default_scope=False)
    if given:
        config = without_downloads(from_json(given))
        check_stored(name, config)
    else:
        config = read(name)
    try:
        with DefaultScope.overwrite_default_scope("mmdet"):
            # A copy: heads write into what they are built from.
            model = MODELS.build(ConfigDict(without_downloads(config)))
            _initialise_(model)
    except _BUILD_ERRORS as error:
        if (reason := cause(error)) is not None:
            raise SourceError(f"mmdet:{name} cannot be built: {reason}") from error
        raise failed_build("mmdet", name, error) from error
    _allow_zero_eps_(model)
    model.eval()
    return Built(
        model=model,
        kwargs={"model": to_json(config)},
        preprocessing=_preprocessing(config, size),
    )


def trace_of(model: nn.Module, example: Tensor) -> tuple[Callable[[nn.Module, Any], Any], str]:
    """See :func:`norton_plugin.zoo.detector_parts.trace_of`."""
    from . import detector_parts

    return detector_parts.trace_of(model, example)


def _initialise_(model: Any) -> None:
    """Gives the model the weights its training would begin with: some parameters are left unset until then."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # mmengine logs several lines for every parameter
    try:
        model.init_weights()
    finally:
        logging.disable(before)


def _allow_zero_eps_(model: nn.Module) -> None:
    """Gives BatchNorm with eps 0, which torch 2.11 refuses, the smallest eps: added to a variance it changes no bit."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.eps == 0:
            module.eps = torch.finfo(torch.float32).tiny


def _preprocessing(config: Mapping[str, Any], size: Sequence[int]) -> Preprocessing:
    given = config.get("data_preprocessor") or {}
    mean, std = given.get("mean"), given.get("std")
    return Preprocessing(
        tuple(size),
        IMAGENET_MEAN if mean is None else tuple(value / 255 for value in mean),
        IMAGENET_STD if std is None else tuple(value / 255 for value in std),
    )
