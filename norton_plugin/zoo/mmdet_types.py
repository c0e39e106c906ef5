"""Which class each name in a stored config of mmdet stands for, without importing or running anything to find out.

mmengine takes a name for an import: it imports the modules that a dotted name may lie in, from the current folder too,
walks attributes from there, and calls what it ends at. In a config that came with an artefact a name is therefore
looked up here. It stands for a class that mmdet, mmcv, mmengine or torch themselves registered as part of a model, or
for one whose full name it is, and for nothing else.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmcv.ops
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.registry import Registry
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo.ecosystem import first_line
from norton_plugin.zoo.stored import TRUST, shown

NAMES = ("type", "_scope_")  # keys that hold one
_OPTIONAL = "mmpretrain"
_SCOPES = ("mmengine", "mmcv", "mmdet", _OPTIONAL)
# Where the classes lie that a model is made of.
_PARTS = (
    *(f"mmdet.models.{part}" for part in ("backbones", "necks", "dense_heads", "roi_heads", "seg_heads", "detectors")),
    *(f"mmdet.models.{part}" for part in ("layers", "losses", "data_preprocessors", "task_modules")),
    *(f"mmdet.models.{part}" for part in ("mot", "reid", "trackers", "tracking_heads", "vis")),
    *("mmcv.cnn.bricks", "mmcv.ops", "torch.nn.modules"),
    *("mmengine.model.base_model", "mmengine.model.weight_init", "mmengine.utils.dl_utils.parrots_wrapper"),
    *(f"mmpretrain.models.{part}" for part in ("backbones", "losses", "utils")),
)
# What lies there but opens a file or a connection, or evaluates text, that an argument names. A test looks for more;
# where a single argument does it, that one is taken out (weights, initialisers) or checked (`teacher_config`, types).
_OPENING = (
    "mmdet.models.dense_heads.atss_vlfusion_head",
    "mmdet.models.detectors.d2_wrapper",
    "mmdet.models.detectors.glip",
    "mmdet.models.detectors.grounding_dino",
    "mmdet.models.task_modules.tracking.aflink",
    "mmdet.models.task_modules.tracking.camera_motion_compensation",
    "mmengine.model.weight_init.PretrainedInit",
    "mmpretrain.models.backbones.timm_backbone",
    "mmpretrain.models.utils.huggingface",
    "mmpretrain.models.utils.tokenizer",
    "mmpretrain.models.utils.vector_quantizer",
)
# Types that mmdet compares or evaluates itself: functions of NMS, parts of FPG, kinds of adaptive convolutions.
_WORDS = ("nms", "soft_nms", "conv", "interpolation_conv", "last_conv", "offset", "dilation")
_look_up = threading.RLock()


def check_types(source: str, config: Any, *, scope: Any = None) -> None:
    """Refuse a config in which a name stands for anything but a part of a model.

    Args:
        source: For messages.
        config: A model's config, as plain dicts, lists and tuples.
        scope: Package whose registry comes first, as of the part that it belongs to.

    Raises:
        SourceError: Such a name, a scope of no package known, or the config of a teacher as a path.
    """
    if isinstance(config, list | tuple):
        for value in config:
            check_types(source, value, scope=scope)
    if not isinstance(config, Mapping):
        return
    kind, scope, teacher = config.get("type"), config.get("_scope_", scope), config.get("teacher_config")
    if scope is not None and scope not in _SCOPES:
        raise SourceError(f"{source} is stored with scope {shown(scope)}; expected one of {', '.join(_SCOPES)}")
    if _OPTIONAL in (scope, str(kind).partition(".")[0]):
        _import_optional(source)
        scope = _OPTIONAL
    if kind is not None and not _is_known(kind, scope):
        raise _refusal(source, kind)
    if teacher is not None and not isinstance(teacher, Mapping):  # mmdet would run the file
        raise SourceError(f"{source} is stored with teacher_config {shown(teacher)}; expected the config itself")
    for value in config.values():
        check_types(source, value, scope=scope)


@contextmanager
def known_names(source: str) -> Iterator[None]:
    """Within it, mmengine looks up names in this thread as `class_of` does.

    Constructors put further arguments in place of a type (`padding_mode`, `conv_type`), which no check of the config
    can know. One thread at a time.
    """
    with _look_up:
        thread, usual = threading.get_ident(), Registry.get

        def get(registry: Registry, key: str) -> Any:
            if threading.get_ident() != thread:
                return usual(registry, key)
            found = class_of(key, registry)
            if found is None:
                raise _refusal(source, key)
            return found

        Registry.get = get
        try:
            yield
        finally:
            Registry.get = usual


def class_of(name: Any, registry: Registry) -> type | None:
    """Find the part of a model that a name stands for.

    Args:
        name: ``Name``, ``scope.Name`` or the full name of a class; the packages that export a class may stand in for
            its module (``torch.nn.ReLU``).
        registry: Where to look first; then in those above it.

    Returns:
        The class, or ``None`` where the name stands for something else or for nothing.
    """
    if not isinstance(name, str):
        return None
    found = _registered(name, registry) or _exported(name)
    return found if found is not None and _is_part(found) else None


def _is_known(name: Any, scope: str | None) -> bool:
    if not isinstance(name, str):
        return False
    operator = vars(mmcv.ops).get(name)  # RoI extractors look theirs up there
    if name in _WORDS or (_is_part(operator) and issubclass(operator, nn.Module)):
        return True
    registries = [MODELS, TASK_UTILS, *([MODELS.root.children[scope]] if scope == _OPTIONAL else [])]
    return any(class_of(name, registry) is not None for registry in registries)


def _registered(name: str, registry: Registry | None) -> Any:
    scope, _, key = name.rpartition(".")
    if scope and registry is not None:
        root = registry.root
        registry = root if scope == root.scope else root.children.get(scope)
    while registry is not None:
        if key in registry.module_dict:
            return registry.module_dict[key]
        registry = None if scope else registry.parent
    return None


def _exported(name: str) -> Any:
    """Find a class of torch or OpenMMLab by its full name, or by that of a package above that exports it."""
    package, _, key = name.rpartition(".")
    found = vars(sys.modules[package]).get(key) if package in sys.modules else None
    own = inspect.isclass(found) and issubclass(found, nn.Module) and found.__qualname__ == key
    return found if own and _lies_in(found.__module__, (package,)) else None


def _is_part(found: Any) -> bool:
    if not inspect.isclass(found):
        return False
    return _lies_in(found.__module__, _PARTS) and not _lies_in(f"{found.__module__}.{found.__qualname__}", _OPENING)


def _lies_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _import_optional(source: str) -> None:
    """Import the package whose backbones configs of mmdet may name, where it is installed."""
    spec = importlib.util.find_spec(_OPTIONAL)
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent == Path.cwd():
        raise SourceError(f"{source} needs {_OPTIONAL}, which is not installed; pip install {_OPTIONAL}")
    try:
        importlib.import_module(f"{_OPTIONAL}.models")
    except Exception as error:  # importing a package of this size may raise anything
        raise SourceError(f"{source} needs {_OPTIONAL}, which cannot be imported: {first_line(error)}") from error


def _refusal(source: str, name: Any) -> SourceError:
    return SourceError(
        f"{source} is stored with type {shown(name)}; expected a part of a model of mmdet, mmcv, mmengine or torch "
        f"that opens no file or connection; {TRUST}"
    )
