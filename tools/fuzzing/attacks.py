"""Attacks on an artefact by somebody who knows the format and the libraries behind it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from fuzzing.watch import MODULE, TOKEN, Bait

Attack = tuple[str, Callable[[random.Random], None]]
_HUGE = (10**6, 10**9, 2**31, 2**40, 2**63)


def attacks_on(data: dict[str, Any], bait: Bait) -> dict[str, list[Attack]]:
    """Attacks that fit a manifest, by what they are on; each changes it in place.

    Args:
        data: The manifest, perhaps edited already.
        bait: What they name.
    """
    source = data.get("source")
    kwargs = source.setdefault("kwargs", {}) if isinstance(source, dict) else None
    kind = source.get("kind") if isinstance(source, dict) else None
    found = {"source": [*_on_source(data, bait)], "structure": [*_on_structure(data)], "extra": [*_on_extra(data)]}
    if isinstance(kwargs, dict):
        found["arguments"] = [_setting(kwargs, key, value) for key, value in _arguments(kind, bait)]
        found["config"] = [*_on_config(kwargs, bait)] if kind == "mmdet" else []
    return {group: attacks for group, attacks in found.items() if attacks}


def _setting(holder: dict[str, Any], key: str, value: Any) -> Attack:
    return f"{key} = {value!r:.60}", lambda rng: holder.__setitem__(key, value)


def _on_source(data: dict[str, Any], bait: Bait) -> Iterator[Attack]:
    for source in (
        {"kind": "python", "name": f"{MODULE}:build", "kwargs": {}},
        {"kind": "python", "name": "os:system", "kwargs": {"command": f"touch {bait.ran}"}},
        {"kind": "mmdet", "name": str(bait.directory / f"{MODULE}.py"), "kwargs": {}},
        {"kind": "mmdet", "name": str(bait.directory / f"{MODULE}.py"), "kwargs": {"model": {}}},
        {"kind": "mmdet", "name": str(bait.directory / f"{MODULE}.py"), "kwargs": {"model": []}},
        {"kind": "timm", "name": f"local-dir:{bait.weights.parent}", "kwargs": {}},
        {"kind": "timm", "name": f"hf_hub:{TOKEN}/model", "kwargs": {}},
        {"kind": MODULE, "name": "build", "kwargs": {}},
        {"kind": f"..{MODULE}", "name": "build", "kwargs": {}},
        {"kind": "checkpoint", "name": "build", "kwargs": {}},
        {"kind": "cifar", "name": "densenet40", "kwargs": {"num_classes": "many"}},
    ):
        yield _setting(data, "source", source)


def _arguments(kind: Any, bait: Bait) -> Iterator[tuple[str, Any]]:
    file = str(bait.weights)
    hub = {"url": bait.url, "file": file, "hf_hub_id": f"{TOKEN}/model", "architecture": "resnet18"}
    both: list[tuple[str, Any]] = [("num_classes", value) for value in (-1, 0, "x", None, 1.5, *_HUGE)]
    both += [("weights", "DEFAULT"), ("pretrained", True), ("self", None), ("name", "x"), ("model", {"type": MODULE})]
    if kind == "timm":
        both += [("checkpoint_path", file), ("pretrained_cfg", hub), ("pretrained_cfg_overlay", hub)]
        both += [("pretrained_cfg", f"hf_hub:{TOKEN}/model"), ("cache_dir", file), ("pretrained_strict", False)]
        both += [("act_layer", MODULE), ("norm_layer", f"{MODULE}.build"), ("in_chans", 10**9), ("scriptable", True)]
        both += [("features_only", True), ("feature_cls", MODULE), ("block_args", [[MODULE]]), ("img_size", 10**9)]
    if kind == "torchvision":
        both += [("weights", "IMAGENET1K_V1"), ("weights_backbone", "DEFAULT"), ("progress", True), ("dropout", "x")]
        both += [("version", "1_0"), ("norm_layer", MODULE)]
    if kind in ("cifar", "demo"):
        both += [("widths", [1, 2]), ("widths", [10**9] * 3), ("widths", "abc"), ("blocks", 10**6)]
    yield from both


def _on_config(kwargs: dict[str, Any], bait: Bait) -> Iterator[Attack]:
    """Types that mmengine would import and call, and initialisers that read files, at every place of a config."""
    for call in (*_calls(bait), *({"type": name} for name in _NAMES)):
        yield f"type {call['type']}", lambda rng, call=call: _replace_type(rng, kwargs, call)
    for scope in (MODULE, "os", ".", 5):
        yield f"scope {scope}", lambda rng, scope=scope: rng.choice(_configs(kwargs)).__setitem__("_scope_", scope)
    for name in _INITIALISERS:
        for where in (str(bait.weights), bait.url):
            read = {"type": name, "checkpoint": where}
            yield f"initialiser {name}", lambda rng, read=read: _initialise(rng, kwargs, read)
    for key in ("pretrained", "checkpoint", "teacher_ckpt", "teacher_config", "load_from", "init_weights"):
        yield f"{key} of bait", lambda rng, key=key: rng.choice(_configs(kwargs)).__setitem__(key, str(bait.weights))


_INITIALISERS = ("Pretrained", "PretrainedInit", "mmengine.model.PretrainedInit", "mmengine.PretrainedInit")
_INITIALISERS += ("mmengine.model.weight_init.PretrainedInit", "mmdet.PretrainedInit", "mmengine.Pretrained")
_NAMES = (MODULE, f"{MODULE}.build", f"mmdet.models.{MODULE}", "mmdet.models", "torch.nn", "torch.nn.Module", "", ".")
_NAMES += ("builtins.exit", "os.abort", "mmdet.models.detectors.base.abstractmethod", "ResNet.", "mmdet.", "Runner")
_NAMES += ("torch.nn.parallel.DistributedDataParallel", "torch.nn.Sequential", "mmdet.models.detectors.two_stage.copy")


def _calls(bait: Bait) -> Iterator[dict[str, Any]]:
    code, file = bait.code, str(bait.weights)
    for module in ("kd_one_stage", "single_stage"):
        path = f"mmdet.models.detectors.{module}.Config.fromstring"
        yield {"type": path, "cfg_str": code, "file_format": ".py"}
    module = str(bait.directory / f"{MODULE}.py")
    yield {"type": "mmdet.models.detectors.kd_one_stage.Config.fromfile", "filename": module}
    yield {"type": "mmdet.models.detectors.kd_one_stage.torch.load", "f": file, "weights_only": False}
    yield {"type": "mmdet.models.detectors.kd_one_stage.torch.hub.load_state_dict_from_url", "url": bait.url}
    yield {"type": "mmdet.models.detectors.kd_one_stage.load_checkpoint", "model": None, "filename": file}
    yield {"type": "torch.nn.modules.module.torch.hub.load", "repo_or_dir": file, "model": "x", "source": "local"}
    yield {"type": "torch.nn.functional.torch.load", "f": file}
    yield {"type": "torch.nn.init.torch.load", "f": file}
    yield {"type": "mmengine.model.base_module.os.system", "command": f"touch {bait.ran}"}
    yield {"type": "builtins.exec", "source": code}
    yield {"type": "os.system", "command": f"touch {bait.ran}"}
    yield {"type": "subprocess.run", "args": ["touch", str(bait.ran)]}
    yield {"type": "Config", "filename": file}
    yield {"type": "mmengine.config.Config.fromstring", "cfg_str": code, "file_format": ".py"}
    yield {"type": "mmdet.models.utils.misc.np.load", "file": file, "allow_pickle": True}
    yield {"type": "mmdet.models.detectors.base.BaseDetector.load_state_dict", "state_dict": {}}


def _configs(value: Any) -> list[dict[str, Any]]:
    """Return every object in a config that names a type, outermost first; the config itself where there is none."""
    found = list(_typed(value))
    return found or [value]


def _typed(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "type" in value:
            yield value
        for inner in list(value.values()):
            yield from _typed(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _typed(inner)


def _replace_type(rng: random.Random, kwargs: dict[str, Any], call: dict[str, Any]) -> None:
    configs = _configs(kwargs)
    config = configs[0] if rng.random() < 0.4 else rng.choice(configs)
    if rng.random() < 0.8:
        config.clear()
    config.update(call)


def _initialise(rng: random.Random, kwargs: dict[str, Any], read: dict[str, Any]) -> None:
    several = rng.random() < 0.4
    rng.choice(_configs(kwargs))["init_cfg"] = [read, {"type": "Normal", "layer": "Conv2d"}] if several else read


def _on_structure(data: dict[str, Any]) -> Iterator[Attack]:
    structure = data.get("structure")
    modules = structure.get("modules") if isinstance(structure, dict) else None
    entries = [entry for entry in modules if isinstance(entry, dict)] if isinstance(modules, list) else []
    blocks = [entry["block"] for entry in entries if isinstance(entry.get("block"), dict)]
    resized = [entry for entry in entries if isinstance(entry.get("resize"), dict)]
    for key in ("in_channels", "out_channels", "kernel_size", "rank", "groups", "padding", "stride", "dilation"):
        for value in (*_HUGE, -1, 0, [3], [2**31, 2**31], "3", None, [0, 0], 2.0):
            if blocks:
                yield f"block {key} = {value!r}", lambda rng, k=key, v=value: rng.choice(blocks).__setitem__(k, v)
    for key, value in (("form", "exec"), ("padding_mode", "\0"), ("device", "meta"), ("dtype", 5), ("forward", 1)):
        if blocks:
            yield f"block {key} = {value!r}", lambda rng, k=key, v=value: rng.choice(blocks).__setitem__(k, v)
    for shape in ([10**12], [2**31, 2**31], [-1], [], [0], "3", 5, None, [[1]], [1.5]):
        if resized:
            yield f"resize to {shape!r}", lambda rng, v=shape: _set_any(rng, rng.choice(resized)["resize"], v)
    for key, value in _ATTRIBUTES:
        if resized:
            yield f"attribute {key} = {value!r}", lambda rng, k=key, v=value: _set_attribute(rng, resized, k, v)
    for names in ([], [""], ["conv1", "no such"], ["__class__"], "conv1", [None], [["x"]]):
        if entries:
            yield f"names = {names!r}", lambda rng, v=names: rng.choice(entries).__setitem__("names", v)
    if entries:
        yield "an entry twice", lambda rng: modules.append(rng.choice(entries))
        yield "a million entries", lambda rng: modules.extend([entries[0]] * 10**5)


_ATTRIBUTES: tuple[tuple[str, Any], ...] = (
    ("forward", 1), ("__class__", "x"), ("_parameters", None), ("_modules", {"tuple": []}), ("_buffers", 5),
    ("_forward_hooks", [1]), ("weight", 5), ("bias", "x"), ("training", "x"), ("load_state_dict", 1),
    ("state_dict", None), ("named_modules", 0), ("in_channels", "x"), ("stride", {"tuple": ["x"]}), ("__dict__", 5),
    ("norton_attribute", 1), ("out_channels", 10**30), ("num_features", None), ("eps", "x"), ("\0", 1), ("", 1),
    ("register_forward_hook", 3),
)  # fmt: skip


def _set_any(rng: random.Random, holder: dict[str, Any], value: Any) -> None:
    holder[rng.choice([*holder, "weight"])] = value


def _set_attribute(rng: random.Random, resized: list[dict[str, Any]], key: str, value: Any) -> None:
    attributes = rng.choice(resized).setdefault("attributes", {})
    if isinstance(attributes, dict):
        attributes[key] = value


def _on_extra(data: dict[str, Any]) -> Iterator[Attack]:
    extra = data.get("extra")
    if not isinstance(extra, dict):
        return
    for value in (*_HUGE[1:], -1, 0, "1", 1.5, None, True, [1]):
        yield _setting(extra, "inputs", value)
    preprocessing = extra.get("preprocessing")
    if isinstance(preprocessing, dict):
        for key, value in _PREPROCESSING:
            yield _setting(preprocessing, key, value)


_PREPROCESSING: tuple[tuple[str, Any], ...] = (
    ("input_size", [3, 10**6, 10**6]), ("input_size", [-3, 32, 32]), ("input_size", []), ("input_size", [3, 0, 0]),
    ("input_size", "3"), ("input_size", [3, "x", 4]), ("input_size", [3, 1.5, 2]), ("input_size", [10**9, 1, 1]),
    ("input_size", [3, 8, 32, 32]), ("input_size", None), ("input_size", [True, 32, 32]), ("input_size", [3, 2**63, 1]),
    ("mean", "abc"), ("mean", []), ("mean", [float("nan")] * 3), ("std", [0, 0, 0]), ("std", None), ("std", [1e308]),
    ("crop_pct", -1), ("crop_pct", "x"), ("interpolation", 5), ("x", 1),
)  # fmt: skip
