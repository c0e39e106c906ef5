"""A stored config of mmdet builds parts of models: it runs no code, opens no file and no connection."""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.registry import Registry
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo import load_source, mmdet_types, rebuild

pytestmark = pytest.mark.mm

CONV = {"type": "ConvModule", "in_channels": 3, "out_channels": 4, "kernel_size": 3}


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return load_source("mmdet:retinanet/retinanet_r18_fpn_1x_coco", input_size=64).spec


def attacked(spec: dict[str, Any], **model: Any) -> dict[str, Any]:
    """A copy of a spec with other values in its model: ``backbone__depth`` stands for ``backbone["depth"]``."""
    copy = json.loads(json.dumps(spec))
    for place, value in model.items():
        inner = copy["kwargs"]["model"]
        *path, last = place.split("__")
        for key in path:
            inner = inner[key]
        inner[last] = value
    return copy


def other(model: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "mmdet", "name": "any", "kwargs": {"model": model}}


def test_the_trap_springs(trap):
    """Otherwise the tests below would prove nothing."""
    assert trap.sprung() == []
    with pytest.raises(Exception, match="magic|Weights only|UnpicklingError"):
        torch.load(trap.file("a.pth"), weights_only=True)
    assert trap.sprung() == [f"opened {trap.folder / 'a.pth'}"]
    eval(trap.expression)
    with pytest.raises(OSError, match="(?i)remote|reset|closed"):
        torch.hub.load_state_dict_from_url(trap.url, model_dir=str(trap.folder / "hub"))
    assert trap.sprung()[-2:] == ["code was run", "connected"]


REFUSED: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "a function of another package, through a module of mmdet": lambda spec, trap: other(
        {
            "type": "mmdet.models.detectors.kd_one_stage.Config.fromstring",
            "cfg_str": trap.expression,
            "file_format": ".py",
        }
    ),
    "the same, with what a word can hold": lambda spec, trap: other(
        {"type": "mmdet.models.detectors.kd_one_stage.Config.fromstring", "cfg_str": "word"}
    ),
    "a function of Python": lambda spec, trap: other({"type": "os.mkdir", "path": "mark"}),
    "the same deep inside": lambda spec, trap: attacked(
        spec, bbox_head__anchor_generator={"type": "os.mkdir", "path": "mark"}
    ),
    "the same in a list": lambda spec, trap: attacked(spec, backbone__plugins=[[{"type": "os.mkdir", "path": "mark"}]]),
    "the same in a tuple": lambda spec, trap: attacked(
        spec, backbone__plugins={"__tuple__": [{"type": "os.mkdir", "path": "mark"}]}
    ),
    "a module of the current folder": lambda spec, trap: attacked(spec, neck={"type": "of_a_stranger"}),
    "a class in it": lambda spec, trap: attacked(spec, neck={"type": "of_a_stranger.Net"}),
    "its registry, as a scope": lambda spec, trap: attacked(spec, neck___scope_="of_a_stranger"),
    "the folder of a package that configs may name": lambda spec, trap: attacked(
        spec, neck={"type": trap.file("mmpretrain/__init__.py") and "mmpretrain.ConvNeXt"}
    ),
    "the same as a scope": lambda spec, trap: attacked(
        spec, neck___scope_=trap.file("mmpretrain/__init__.py") and "mmpretrain"
    ),
    "a module in place of a padding": lambda spec, trap: other({**CONV, "padding_mode": "of_a_stranger"}),
    "a module in place of a convolution": lambda spec, trap: other(
        {**CONV, "conv_cfg": {"type": "Conv2d"}, "norm_cfg": {"type": "of_a_stranger"}}
    ),
    "text that a tracker evaluates": lambda spec, trap: attacked(
        spec, neck={"type": "CameraMotionCompensation", "warp_mode": trap.expression}
    ),
    "its class alone": lambda spec, trap: other({"type": "mmdet.CameraMotionCompensation"}),
    "text that NMS evaluates": lambda spec, trap: attacked(spec, test_cfg__nms__type=trap.expression),
    "a word that NMS evaluates": lambda spec, trap: attacked(spec, test_cfg__nms__type="exec"),
    "weights of a tracker": lambda spec, trap: other({"type": "AppearanceFreeLink", "checkpoint": trap.file("a.pth")}),
    "a language model": lambda spec, trap: attacked(spec, neck={"type": "BertModel", "name": "gpt2"}),
    "a config of Detectron2": lambda spec, trap: other({"type": "Detectron2Wrapper", "detector": {}}),
    "the config of a teacher in a script": lambda spec, trap: attacked(
        spec, type="KnowledgeDistillationSingleStageDetector", teacher_config=trap.file("teacher.py")
    ),
    "the same without a path": lambda spec, trap: attacked(
        spec, type="KnowledgeDistillationSingleStageDetector", teacher_config="teacher"
    ),
    "a dataset": lambda spec, trap: attacked(spec, neck={"type": "CocoDataset", "ann_file": "word"}),
    "a hook": lambda spec, trap: attacked(spec, neck={"type": "mmengine.CheckpointHook", "out_dir": "word"}),
    "a model that takes any source": lambda spec, trap: other({"type": "TimmClassifier", "model": "python:os:getcwd"}),
    "the same, with a word": lambda spec, trap: other({"type": "mmengine.TimmClassifier", "model": "word"}),
}


@pytest.mark.parametrize("attack", REFUSED.values(), ids=REFUSED)
def test_it_is_refused(attack, good, trap):
    import norton_plugin.mm  # noqa: F401  registers models of its own

    trap.file("of_a_stranger/__init__.py")
    trap.file("of_a_stranger/registry.py")
    with pytest.raises(SourceError) as caught:
        rebuild(attack(good, trap))
    assert trap.sprung() == []
    assert "of_a_stranger" not in sys.modules
    assert "\n" not in str(caught.value)


LEFT_OUT: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "a file": lambda spec, trap: attacked(spec, init_cfg={"type": "Pretrained", "checkpoint": trap.file("a.pth")}),
    "its full name": lambda spec, trap: attacked(
        spec, backbone__init_cfg={"type": "mmengine.model.PretrainedInit", "checkpoint": trap.file("a.pth")}
    ),
    "an address": lambda spec, trap: attacked(
        spec, neck__init_cfg=[{"type": "mmengine.model.PretrainedInit", "checkpoint": trap.url}]
    ),
    "an initialiser that is none": lambda spec, trap: attacked(
        spec, init_cfg={"type": "os.mkdir", "path": str(trap.mark)}
    ),
    "one for a part": lambda spec, trap: attacked(
        spec,
        bbox_head__init_cfg={
            "type": "Normal",
            "layer": "Conv2d",
            "override": {"type": "os.mkdir", "name": "retina_cls", "path": str(trap.mark)},
        },
    ),
    "weights of a backbone": lambda spec, trap: attacked(spec, backbone__pretrained=trap.file("a.pth")),
    "weights of a recursive one": lambda spec, trap: attacked(
        spec, backbone__type="DetectoRS_ResNet", backbone__depth=50, backbone__pretrained=trap.url, neck=None
    ),
    "weights of a teacher": lambda spec, trap: attacked(
        spec,
        type="KnowledgeDistillationSingleStageDetector",
        teacher_config={"model": spec["kwargs"]["model"]},
        teacher_ckpt=trap.url,
    ),
}


@pytest.mark.parametrize("trust", [False, True], ids=["stranger", "saved again"])
@pytest.mark.parametrize("attack", LEFT_OUT.values(), ids=LEFT_OUT)
def test_weights_and_initialisers_are_left_out(attack, trust, good, trap):
    """What was opened without them is saved again by building it once more, as its user's own."""
    model = rebuild(attack(good, trap), trust_code=trust)
    assert trap.sprung() == []
    assert isinstance(model, nn.Module)


def foreign_names() -> list[str]:
    """Functions and classes of others that modules of OpenMMLab and torch.nn hold, by the names mmengine would find."""
    register_all_modules(init_default_scope=False)
    roots = ("mmdet.models", "mmcv.cnn", "mmcv.ops", "mmengine.model", "torch.nn")
    names = []
    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith(roots):
            continue
        for key, value in sorted(vars(module).items()):
            if callable(value) and not (inspect.isclass(value) and issubclass(value, nn.Module)):
                names.append(f"{module_name}.{key}")
                if inspect.isclass(value):
                    names += [f"{module_name}.{key}.{inner}" for inner in vars(value) if not inner.startswith("__")]
    return names


def test_no_function_is_within_reach():
    names = foreign_names()
    assert len(names) > 2000 and "mmdet.models.detectors.kd_one_stage.Config.fromstring" in names
    assert [name for name in names if mmdet_types.class_of(name, MODELS) is not None] == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ReLU", nn.ReLU),
        ("torch.nn.ReLU", nn.ReLU),
        ("torch.nn.modules.activation.ReLU", nn.ReLU),
        ("mmdet.ResNet", "mmdet.models.backbones.resnet.ResNet"),
        ("mmdet.models.ResNet", "mmdet.models.backbones.resnet.ResNet"),
        ("mmdet.models.backbones.resnet.ResNet", "mmdet.models.backbones.resnet.ResNet"),
        ("mmcv.cnn.ConvModule", "mmcv.cnn.bricks.conv_module.ConvModule"),
        ("mmcv.cnn.ResNet", None),  # opens what `pretrained` names
        ("mmdet.models.detectors.retinanet.MODELS", None),
        ("mmdet.models.detectors.base.BaseModel", None),  # of another package
        ("mmdet.models.backbones.resnet.nn.ReLU", None),
        ("torch.nn.ReLU.forward", None),
        ("torch.nn.parallel.DataParallel", None),
        ("torch.nn", None),
        ("", None),
        (".", None),
        ("os", None),
        (None, None),
    ],
)
def test_names(name, found):
    register_all_modules(init_default_scope=False)
    kind = mmdet_types.class_of(name, MODELS)
    assert (f"{kind.__module__}.{kind.__qualname__}" if isinstance(found, str) else kind) == found


def test_full_names_build_a_model(good):
    """How mmengine writes configs that name classes themselves."""
    spec = attacked(good, type="mmdet.models.detectors.retinanet.RetinaNet", backbone__type="mmdet.models.ResNet")
    assert type(rebuild(spec)).__name__ == "RetinaNet"
    conv = rebuild(other({**CONV, "act_cfg": {"type": "torch.nn.LeakyReLU", "negative_slope": 0.2}}))
    assert isinstance(conv.activate, nn.LeakyReLU)


def test_mmengine_looks_names_up_as_before_afterwards(good):
    before = Registry.get
    rebuild(good)
    with pytest.raises(SourceError):
        rebuild(other({**CONV, "padding_mode": "of_a_stranger"}))
    assert Registry.get is before
    assert MODELS.get("torch.nn.ReLU") is nn.ReLU


def test_the_name_is_a_label(good, trap):
    script = trap.file("config.py")
    assert isinstance(rebuild({**good, "name": script}), nn.Module)
    with pytest.raises(SourceError, match="not run unasked"):
        rebuild({"kind": "mmdet", "name": script, "kwargs": {"model": {}}})
    assert trap.sprung() == []
    assert Path(script).is_file()


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"inner": value}
    return value


DAMAGED: dict[str, Any] = {
    "a list as model": [CONV],
    "a word as model": "word",
    "a number as model": 3,
    "no type": {"in_channels": 3},
    "a list as type": {**CONV, "type": ["ConvModule"]},
    "a number as type": {**CONV, "type": 3},
    "a mapping as type": {**CONV, "type": {"type": "ConvModule"}},
    "a long type": {**CONV, "type": "C" * 10**7},
    "an unknown type": {**CONV, "type": "NoSuchConvModule"},
    "a word as mapping": {**CONV, "norm_cfg": "BN"},
    "a list as scope": {**CONV, "_scope_": ["mmdet"]},
    "a private key": {**CONV, "_delete_": True},
    "a tuple of a number": {**CONV, "kernel_size": {"__tuple__": 3}},
    "a tuple and more": {**CONV, "kernel_size": {"__tuple__": [3], "more": 1}},
    "missing arguments": {"type": "ConvModule"},
    "arguments unknown": {**CONV, "no_such_argument": 1},
    "a large number": {**CONV, "out_channels": 10**12},
    "numbers large together": {**CONV, "in_channels": 10**6, "out_channels": 10**6},
    "a negative number": {**CONV, "out_channels": -4},
    "deep": {**CONV, "inner": nested(100)},
    "very deep": {**CONV, "inner": nested(100_000)},
    "wide": {**CONV, "inner": [0] * 10**6},
    "many anchors": {"type": "RetinaHead", "num_classes": 10**6, "in_channels": 256},
    "many layers": {"type": "HourglassNet", "num_stacks": 10**6, "feat_channels": 1, "downsample_times": 900},
    "no detector": {"type": "AnchorGenerator", "strides": [4], "ratios": [1.0], "scales": [8]},
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_one_clear_error(damaged):
    with pytest.raises(SourceError) as caught:
        rebuild(other(damaged))
    text = str(caught.value)
    assert len(text) < 800 and text.isprintable()


def test_a_config_stands_alone():
    spec = other(CONV)
    spec["kwargs"]["custom_imports"] = {"imports": "os"}
    with pytest.raises(SourceError, match="expected a mapping as model, and classes"):
        rebuild(spec)
