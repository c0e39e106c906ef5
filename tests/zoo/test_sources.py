import json
import socket
import sys

import pytest
import torch
from torch import nn

from norton_plugin.errors import MissingExtraError, SourceError
from norton_plugin.modules.running import output_tensors
from norton_plugin.zoo import Preprocessing, list_models, load_source, rebuild
from norton_plugin.zoo.preprocessing import resolve_input_size

SOURCES = [
    ("timm:resnet18", {"num_classes": 7}, (3, 224, 224)),
    ("timm:resnet10t", {"input_size": 64}, (3, 64, 64)),
    ("timm:vit_tiny_patch16_224", {"input_size": 64}, (3, 64, 64)),
    ("timm:mobilenetv3_small_050", {"input_size": (1, 64, 96)}, (1, 64, 96)),
    ("torchvision:mobilenet_v3_small", {"input_size": 64}, (3, 64, 64)),
    ("torchvision:efficientnet_b0", {"input_size": 64, "num_classes": 4}, (3, 64, 64)),
    ("torchvision:vit_b_16", {"input_size": 32}, (3, 32, 32)),
    ("torchvision:lraspp_mobilenet_v3_large", {"input_size": 64}, (3, 64, 64)),
    ("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", {"input_size": 64}, (3, 64, 64)),
    ("torchvision:r3d_18", {"input_size": (3, 4, 32, 32)}, (3, 4, 32, 32)),
    ("cifar:resnet20", {}, (3, 32, 32)),
    ("demo:digits", {"kwargs": {"widths": [8, 8, 16]}}, (1, 16, 16)),
]


@pytest.mark.parametrize(("spec", "options", "size"), SOURCES, ids=[source[0] for source in SOURCES])
def test_each_source_runs_and_is_rebuilt_from_json(spec, options, size):
    source = load_source(spec, **options)
    assert source.input_size == size
    assert [tuple(x.shape) for x in source.example_inputs] == [(1, *size)]
    assert not source.model.training
    again = rebuild(json.loads(json.dumps(source.spec))).eval()
    again.load_state_dict(source.model.state_dict())
    with torch.no_grad():
        pairs = [output_tensors(model(*source.example_inputs)) for model in (source.model, again)]
    assert pairs[0] and all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


def test_number_of_classes_reaches_the_head():
    assert load_source("timm:resnet18", num_classes=7).model.fc.out_features == 7


def test_normalisation_is_the_models_own():
    assert load_source("timm:vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert load_source("torchvision:r3d_18").mean == (0.43216, 0.394666, 0.37645)
    assert load_source("torchvision:efficientnet_b1").preprocessing == Preprocessing(
        (3, 240, 240), crop_pct=240 / 255, interpolation="bilinear"
    )


def test_python_function(tmp_path, monkeypatch):
    (tmp_path / "mine_for_norton.py").write_text(
        "from torch import nn\n"
        "def net(width=3, num_classes=2):\n"
        "    conv, pool = nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(conv, pool, nn.Flatten(), nn.Linear(width, num_classes))\n"
        "def number():\n    return 3\n"
        "def fails():\n    raise KeyError('inside')\n"
    )
    monkeypatch.chdir(tmp_path)
    source = load_source("python:mine_for_norton:net", num_classes=5, input_size=8, kwargs={"width": 6})
    assert source.spec == {"kind": "python", "name": "mine_for_norton:net", "kwargs": {"width": 6, "num_classes": 5}}
    assert source.model(*source.example_inputs).shape == (1, 5)
    assert isinstance(rebuild(source.spec, trust_code=True), nn.Sequential)
    with pytest.raises(SourceError, match="python:mine_for_norton:net with arguments .* not run unasked.*--trust-code"):
        rebuild(source.spec)
    for name, message in [
        ("net", "no argument named pretrained"),
        ("number", "returned a int, expected a torch.nn.Module"),
        ("fails", "KeyError: 'inside'"),
        ("absent", "no function 'absent'; it has net, number, fails"),
    ]:
        with pytest.raises(SourceError, match=message):
            load_source(f"python:mine_for_norton:{name}", pretrained=name == "net")


def test_a_model_of_the_user_may_take_two_images(tmp_path, monkeypatch):
    (tmp_path / "pairs_for_norton.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, left, right, *rest, scale=1.0, flip=False):\n"
        "        return (self.conv(left) - self.conv(right)).mean((2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    source = load_source("python:pairs_for_norton:Pair", input_size=8)
    assert [tuple(x.shape) for x in source.example_inputs] == [(1, 3, 8, 8)] * 2
    assert source.model(*source.example_inputs).shape == (1, 4)


def test_a_function_of_the_user_may_read_clips(tmp_path, monkeypatch):
    (tmp_path / "clips_for_norton.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    source = load_source("python:clips_for_norton:net", input_size=(2, 5, 6, 7))
    assert source.input_size == (2, 5, 6, 7) and source.model(*source.example_inputs).shape == (1, 4)
    with pytest.raises(SourceError, match="does not fit"):
        load_source("python:clips_for_norton:net", input_size=(2, 0, 6, 7))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "expected KIND:NAME"),
        ("timm:", "expected KIND:NAME"),
        (
            "keras:resnet50",
            "unknown kind of model source 'keras', expected one of timm, torchvision, mmdet, python, cifar, demo",
        ),
        ("timm:resnet5o", "did you mean resnet50"),
        ("timm:resnet18.nope_in1k", r"did you mean resnet18\."),
        ("torchvision:resnet_50", "did you mean resnet50"),
        ("torchvision:zzzzzzzz", "it has .* models, such as"),
        ("cifar:resnet21", "did you mean resnet20"),
        ("demo:digit", "did you mean digits"),
        ("python:math", "incomplete"),
        ("python:no_such_module_here:f", "cannot be imported"),
        ("python:mine.py:f", "names a file; .* from the current folder, such as python:mine:f"),
        ("python:./nets/mine.py:f", "such as python:nets.mine:f"),
    ],
)
def test_unknown_sources(spec, message):
    with pytest.raises(SourceError, match=message):
        load_source(spec)


@pytest.mark.parametrize("kind", ["timm:resnet18", "torchvision:resnet18", "cifar:resnet20", "demo:digits"])
def test_arguments_that_do_not_fit(kind):
    with pytest.raises(SourceError, match="cannot be built with these arguments"):
        load_source(kind, kwargs={"no_such_argument": 1})


def test_two_sources_of_weights():
    with pytest.raises(SourceError, match="give one of the two"):
        load_source("timm:resnet18", pretrained=True, checkpoint="weights.pth")


def test_no_classes():
    with pytest.raises(SourceError, match="num_classes is 0"):
        load_source("timm:resnet18", num_classes=0)


def test_rebuild_needs_a_whole_source():
    with pytest.raises(SourceError, match="lacks name"):
        rebuild({"kind": "timm"})


@pytest.mark.parametrize("spec", ["timm:vgg11", "torchvision:vgg11"])
def test_pretrained_without_network_is_one_line_that_names_the_way_out(spec, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceError, match="--checkpoint") as caught:
        load_source(spec, pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, (3, 32, 32)), (64, (3, 64, 64)), ((48, 64), (3, 48, 64)), ((1, 8, 8), (1, 8, 8))],
)
def test_resolve_input_size(asked, expected):
    assert resolve_input_size(asked, (3, 32, 32)) == expected


@pytest.mark.parametrize("asked", [0, (3,), (3, 4, 5, 6), (3, -1, 2), (3, 1.5, 2)])
def test_impossible_input_sizes(asked):
    with pytest.raises(SourceError, match="does not fit"):
        resolve_input_size(asked, (3, 32, 32))


def test_names_can_be_listed():
    assert "resnet50" in list_models("timm")
    assert "resnet50" in list_models("torchvision")
    assert list_models("python") == []


@pytest.mark.parametrize(("kind", "package"), [("timm", "timm"), ("torchvision", "torchvision")])
def test_a_missing_package_is_named_with_its_pip_command(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"norton_plugin.zoo.{kind}", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'norton-plugin\[timm\]'"):
        load_source(f"{kind}:resnet18")


def test_a_stored_source_runs_nothing(tmp_path):
    """Artefacts may come from anyone: what they name is not called."""
    target = tmp_path / "made"
    with pytest.raises(SourceError, match="python:os:mkdir"):
        rebuild({"kind": "python", "name": "os:mkdir", "kwargs": {"path": str(target)}})
    script = tmp_path / "config.py"
    script.write_text(f"import os\nos.mkdir({str(target)!r})\nmodel = dict(type='X')\n")
    with pytest.raises(SourceError, match="not run unasked"):
        rebuild({"kind": "mmdet", "name": str(script), "kwargs": {}})
    assert not target.exists()
