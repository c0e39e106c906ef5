"""Detectors of mmdet by the names of their config files, or from any config file; nothing is downloaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.errors import MissingExtraError, NortonError, SourceError
from norton_plugin.zoo.ecosystem import Built, failed_build, no_weights
from norton_plugin.zoo.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, resolve_input_size
from norton_plugin.zoo.stored import check_values, label, not_trusted, shown

try:
    from mmengine.config import ConfigDict
    from mmengine.registry import DefaultScope

    from norton_plugin.zoo.mmdet_classes import classes_of
    from norton_plugin.zoo.mmdet_configs import (
        cause,
        from_json,
        model_of,
        names,
        opened,
        to_json,
        without_downloads,
    )
except ImportError as _error:
    raise MissingExtraError("mmengine is not installed; run: pip install 'norton-plugin[mmdet]'") from _error

_INPUT_SIZE = (3, 320, 320)

__all__ = ["build", "exported_part", "inference_of", "names", "rebuild", "trace_of"]


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
        kwargs: ``{"model": ..., "classes": [...]}``, the model's config and the names of the classes that it finds (may
            be left out), in place of reading ``name`` again.

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
    given = dict(kwargs or {})
    size = resolve_input_size(input_size, _INPUT_SIZE)
    _register(name)
    if "model" in given:
        config, classes = without_downloads(from_json(given["model"])), list(given.get("classes", ()))
    else:
        whole = opened(name)
        config = model_of(whole)
        classes = classes_of(whole, config)
    return Built(
        model=_assembled(name, config),
        kwargs={"model": to_json(config), **({"classes": classes} if classes else {})},
        preprocessing=_preprocessing(config, size),
    )


def rebuild(name: str, kwargs: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Build the detector of a stored config; ``name`` is a label then, and nothing of this name is opened.

    Args:
        name: As for :func:`build`.
        kwargs: As for :func:`build`; without a config, ``name`` is read, which runs it.
        trust_code: Read ``name`` where there is no config, and build whatever else than parts of models is named.

    Returns:
        The detector, with weights that come from nowhere but its constructors.

    Raises:
        SourceError: It is not trusted, names more than parts of models, or cannot be built.
        MissingExtraError: mmdet is not installed.
    """
    source, given = label("mmdet", name), kwargs.get("model")
    if not given:
        if not trust_code:
            raise not_trusted(source, kwargs)
        return build(name).model
    classes = kwargs.get("classes", [])
    if not isinstance(given, Mapping) or not kwargs.keys() <= {"model", "classes"}:
        raise SourceError(f"{source} is stored with {shown(dict(kwargs))}; expected a mapping as model, and classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise SourceError(f"{source} is stored with classes {shown(classes)}; expected a list of names")
    _register(name)
    from norton_plugin.zoo import mmdet_types

    # An artefact brings all weights. Initialisers would only open what they name, now or when it is saved again.
    config = without_downloads(from_json(given), initialised=False)
    if trust_code:
        return _assembled(name, config)
    check_values(source, {"model": config}, special=mmdet_types.NAMES)
    mmdet_types.check_types(source, config)
    with mmdet_types.known_names(source):
        return _assembled(name, config)


def trace_of(model: nn.Module, example: Tensor) -> tuple[Callable[[nn.Module, Any], Any], str]:
    """See :func:`norton_plugin.zoo.detector_parts.trace_of`."""
    from norton_plugin.zoo import detector_parts

    return detector_parts.trace_of(model, example)


def exported_part(model: nn.Module) -> tuple[Callable[[nn.Module, Any], Any], str]:
    """See :func:`norton_plugin.zoo.detector_runs.exported_part`."""
    from norton_plugin.zoo import detector_runs

    part, words = detector_runs.exported_part(model)
    return (lambda net, inputs: part(net, inputs[0])), words


def inference_of(model: nn.Module) -> Callable[[nn.Module, Tensor], Any]:
    """See :func:`norton_plugin.zoo.mmdet_prediction.boxes_of`."""
    from norton_plugin.zoo.mmdet_prediction import boxes_of

    return boxes_of


def _register(name: str) -> None:
    try:
        from mmdet.utils import register_all_modules
    except ImportError as error:
        raise MissingExtraError(f"mmdet:{name} needs mmdet with mmcv's operators: {error}") from error
    register_all_modules(init_default_scope=False)


def _assembled(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return the detector of a config that fetches nothing, in eval mode."""
    from mmdet.registry import MODELS

    try:
        with DefaultScope.overwrite_default_scope("mmdet"):
            # A copy: heads write into what they are built from.
            model: nn.Module = MODELS.build(ConfigDict(without_downloads(config)))
            _initialise_(model)
    except NortonError:
        raise
    except Exception as error:  # operators of CUDA alone, packages that are absent, arguments of old configs, ...
        if (reason := cause(error)) is not None:
            raise SourceError(f"mmdet:{name} cannot be built: {reason}") from error
        raise failed_build("mmdet", name, error) from error
    _allow_zero_eps_(model)
    model.eval()
    return model


def _initialise_(model: Any) -> None:
    """Give the model the weights its training would begin with: some parameters are left unset until then."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # mmengine logs several lines for every parameter
    try:
        model.init_weights()
    finally:
        logging.disable(before)


def _allow_zero_eps_(model: nn.Module) -> None:
    """Give BatchNorm with eps 0, which torch 2.11 refuses, the smallest eps: added to a variance it changes no bit."""
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
