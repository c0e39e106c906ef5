"""Configs of mmdet as sources: nothing is fetched, JSON keeps what mmdet tells apart, and reasons are in words."""

import json
import socket

import pytest
import torch

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

from mmengine.model import PretrainedInit
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo import list_models, load_source, mmdet, rebuild
from norton_plugin.zoo import mmdet_configs as configs
from norton_plugin.zoo.mmdet_classes import classes_of
from norton_plugin.zoo.prediction import class_names, predict

pytestmark = pytest.mark.mm


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "name",
    [
        "ssd/ssd300_coco",  # tuples that mmdet insists on
        "ld/ld_r18-gflv1-r101_fpn_1x_coco",  # the config of a teacher, in another file
    ],
)
def test_a_config_is_rebuilt_from_json(name):
    source = load_source(f"mmdet:{name}", input_size=64)
    spec = json.loads(json.dumps(source.spec))
    assert shapes(rebuild({**spec, "name": "gone"})) == shapes(source.model)


@pytest.mark.parametrize(
    "config",
    [
        {"a": (1, 2), "b": [3, (4, {"c": ()})], "d": None},
        {"order": ("act", "conv", "norm"), "skip_inds": [(0, 1), (0,), ()]},
        [],
        ((),),
    ],
)
def test_json_keeps_tuples(config):
    assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config


def test_json_holds_classes_by_their_full_names():
    assert configs.to_json({"type": nn.ReLU}) == {"type": "torch.nn.modules.activation.ReLU"}


def test_a_config_that_names_classes_is_rebuilt(tmp_path):
    """Configs of mmengine's newer style import what they name."""
    (tmp_path / "new.py").write_text(
        "from mmcv.cnn import ConvModule\nfrom torch.nn import LeakyReLU\n"
        "model = dict(type=ConvModule, in_channels=3, out_channels=4, kernel_size=3, act_cfg=dict(type=LeakyReLU))\n"
    )
    built = mmdet.build(str(tmp_path / "new.py"))
    spec = {"kind": "mmdet", "name": "gone", "kwargs": json.loads(json.dumps(built.kwargs))}
    assert spec["kwargs"]["model"]["type"] == "mmcv.cnn.bricks.conv_module.ConvModule"
    assert isinstance(rebuild(spec).activate, nn.LeakyReLU)


def test_a_teacher_is_built_without_its_weights():
    read = configs.read("lad/lad_r101-paa-r50_fpn_2xb8_coco_1x")
    assert "teacher_ckpt" not in read and read["teacher_backbone"]["depth"] == 50
    read = configs.read("ld/ld_r18-gflv1-r101_fpn_1x_coco")
    assert "teacher_ckpt" not in read and read["teacher_config"]["model"]["backbone"]["depth"] == 101
    assert "init_cfg" not in read["backbone"]


def test_fresh_weights_are_those_training_begins_with(capsys):
    """L2Norm leaves its scale unset, whatever was in memory, until the weights are initialised."""
    model = load_source("mmdet:ssd/ssd300_coco", input_size=64).model
    assert torch.equal(model.neck.l2_norm.weight, torch.full((512,), 20.0))
    assert capsys.readouterr() == ("", "")
    fetched = {"init_cfg": [{"type": "Kaiming", "layer": "Conv2d"}, {"type": "Pretrained", "checkpoint": "far"}]}
    assert configs.without_downloads(fetched) == {"init_cfg": [{"type": "Kaiming", "layer": "Conv2d"}]}
    assert configs.without_downloads({"init_cfg": {"checkpoint": "far"}, "depth": 18}) == {"depth": 18}
    for name in ("mmengine.model.PretrainedInit", "mmengine.Pretrained", PretrainedInit):
        assert configs.without_downloads({"init_cfg": {"type": name, "checkpoint": "far"}}) == {}
    kept = {"init_cfg": {"type": "Kaiming", "layer": "Conv2d"}, "neck": {"init_cfg": [], "depth": 2}}
    assert configs.without_downloads(kept) == kept
    assert configs.without_downloads(kept, initialised=False) == {"neck": {"depth": 2}}


def test_batch_norm_with_eps_zero_runs():
    """torch refuses eps 0; the smallest positive number leaves every variance above 1e-30 the same."""
    source = load_source("mmdet:nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco", input_size=64)
    norm = source.model.backbone.bn1
    assert 0 < norm.eps < 1e-37
    torch.manual_seed(0)
    x, variance = torch.randn(2, 64, 5, 5), torch.rand(64) + 1e-20
    norm.running_var.copy_(variance)
    with torch.no_grad():
        found = norm(x)
    assert torch.equal(variance + norm.eps, variance)
    assert torch.allclose(found, x / variance.sqrt()[:, None, None], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cascade_rpn/cascade-rpn_r50-caffe_fpn_1x_coco", "it is not written for the installed mmdet .*num_classes"),
        ("faster_rcnn/faster-rcnn_r5O_fpn_1x_coco", "did you mean faster_rcnn/faster-rcnn_r50_fpn_1x_coco"),
    ],
)
def test_reasons(name, message):
    with pytest.raises(SourceError, match=message) as caught:
        load_source(f"mmdet:{name}")
    assert "\n" not in str(caught.value)


def test_an_absent_package_is_named(tmp_path):
    imports = {"imports": ["no_such_package_here.models"], "allow_failed_imports": False}
    (tmp_path / "config.py").write_text(f"custom_imports = {imports!r}\nmodel = dict(type='FCOS')\n")
    with pytest.raises(SourceError, match="it needs no_such_package_here, .* pip install no_such_package_here"):
        load_source(f"mmdet:{tmp_path / 'config.py'}")
    assert configs.cause(RuntimeError("skimage2 is not installed,   please install it")) == (
        "it needs skimage2, which is not installed; pip install skimage2"
    )
    assert configs.cause(RuntimeError("torch is not installed")) is None
    assert configs.cause(KeyError("type")) is None


def test_names():
    found = list_models("mmdet")
    assert "faster_rcnn/faster-rcnn_r50_fpn_1x_coco" in found
    assert not any(name.startswith("_base_") for name in found)


def test_classes_are_those_of_the_data():
    spec = load_source("mmdet:retinanet/retinanet_r18_fpn_1x_coco", input_size=64).spec
    names = class_names(spec)
    assert (len(names), names[0], names[79]) == (80, "person", "toothbrush")
    assert shapes(rebuild(spec)) == shapes(load_source("mmdet:retinanet/retinanet_r18_fpn_1x_coco").model)


@pytest.mark.parametrize(
    ("loaders", "expected"),
    [
        ({"test_dataloader": {"dataset": {"type": "CocoDataset", "metainfo": {"classes": ("cat", "dog")}}}}, 2),
        ({"train_dataloader": {"dataset": {"dataset": {"metainfo": {"classes": ["cat", "dog"]}}}}}, 2),
        ({"val_dataloader": {"dataset": {"datasets": [{"metainfo": {}}, {"metainfo": {"classes": ("a", "b")}}]}}}, 2),
        ({"test_dataloader": {"dataset": {"metainfo": {"classes": "cat"}}}}, 0),  # one name for two classes
        ({"test_dataloader": {"dataset": {"type": "CocoDataset"}}}, 0),  # eighty
        ({"test_dataloader": {"dataset": {"type": "ADataSetOfAUser"}}}, 0),
        ({"test_dataloader": None}, 0),
    ],
)
def test_classes_that_are_not_as_many_as_the_heads_are_not_taken(loaders, expected):
    model = {"type": "RetinaNet", "bbox_head": {"num_classes": 2}, "stages": [{"num_classes": 7}]}
    found = classes_of(loaders, model)
    assert len(found) == expected and all(isinstance(name, str) for name in found)


@pytest.mark.parametrize("classes", ["cat", [1, 2], {"cat": 0}])
def test_stored_classes_that_are_no_names_are_refused(classes):
    spec = {"kind": "mmdet", "name": "any", "kwargs": {"model": {"type": "RetinaNet"}, "classes": classes}}
    with pytest.raises(SourceError, match="expected a list of names"):
        rebuild(spec)


def test_an_image_of_any_size_is_padded_as_mmdet_does():
    """RTMDet's neck adds up maps of sides that are multiples of 32; its pipeline pads, its preprocessor does not."""
    source = load_source("mmdet:rtmdet/rtmdet_tiny_8xb32-300e_coco", input_size=64)
    picture = torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = predict(source.model, picture, source.spec, source.preprocessing)
    assert found.boxes.shape == (len(found.scores), 4)  # unpadded, the maps of two levels do not fit
