"""A stored source builds a model or is refused in one line: no file, no connection, no raw error, no gigabytes."""

import json
import resource
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo import load_source, rebuild
from norton_plugin.zoo.ecosystem import Built

GIGABYTE = 2**30


def spec(source: str, **kwargs: Any) -> dict[str, Any]:
    kind, _, name = source.partition(":")
    return {"kind": kind, "name": name, "kwargs": kwargs}


@pytest.fixture
def _no_network(monkeypatch):
    """Whoever asks for an address fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"asked the network for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


FILES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "weights of timm": lambda trap: spec("timm:resnet18", checkpoint_path=trap.file("a.pth")),
    "the same, by a word": lambda trap: spec("timm:resnet18", checkpoint_path=trap.file("weights") and "weights"),
    "a cache of timm": lambda trap: spec("timm:resnet18", cache_dir=str(trap.folder)),
    "pretrained": lambda trap: spec("timm:resnet18", pretrained=True),
    "a file as what timm knows of weights": lambda trap: spec(
        "timm:resnet18", pretrained_cfg={"file": trap.file("a.pth")}
    ),
    "the same laid over": lambda trap: spec("timm:resnet18", pretrained_cfg_overlay={"url": trap.url}),
    "a folder as model": lambda trap: spec(f"timm:local-dir:{trap.file('config.json', '{}')[:-12]}"),
    "a repository as model": lambda trap: spec("timm:hf-hub:timm/resnet18.a1_in1k"),
    "an old name for one": lambda trap: spec("timm:hf_hub:timm/resnet18.a1_in1k"),
    "a path as tag": lambda trap: spec("timm:resnet18./../a.pth"),
    "a function of timm": lambda trap: spec("timm:resnet18", pretrained_filter_fn="word"),
    "weights of torchvision": lambda trap: spec("torchvision:resnet18", weights="DEFAULT"),
    "weights of a backbone": lambda trap: spec("torchvision:fcn_resnet50", weights_backbone="DEFAULT"),
    "pretrained torchvision": lambda trap: spec("torchvision:resnet18", pretrained=True),
    "a pretrained backbone": lambda trap: spec("torchvision:fcn_resnet50", pretrained_backbone=True),
    "a path in any argument": lambda trap: spec("torchvision:resnet18", norm_layer=trap.file("a.pth")),
    "a function": lambda trap: spec("python:os:mkdir", path=str(trap.mark)),
    "a function without a kind": lambda trap: spec("os:mkdir", path=str(trap.mark)),
    "a module of the zoo as kind": lambda trap: spec("checkpoint:read_state_dict", path=trap.file("a.pth")),
}


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("attack", FILES.values(), ids=FILES)
def test_nothing_but_the_model_is_built(attack, trap):
    with pytest.raises(SourceError) as caught:
        rebuild(attack(trap))
    assert trap.sprung() == []
    assert "\n" not in str(caught.value)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


DAMAGED: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "a string": "timm:resnet18",
    "empty": {},
    "no kind": {"name": "resnet18"},
    "no name": {"kind": "timm", "kwargs": {}},
    "a number as kind": {"kind": 1, "name": "resnet18"},
    "a list as name": {"kind": "timm", "name": ["resnet18"]},
    "an unknown kind": spec("keras:resnet18"),
    "a long kind": spec("k" * 10**7 + ":resnet18"),
    "a path as kind": spec("../../timm:resnet18"),
    "a further key": {**spec("timm:resnet18"), "code": "word"},
    "a long name": spec("timm:" + "n" * 10**7),
    "a long label": spec("mmdet:" + "n" * 10**7, model={"type": "FPN"}),
    "NUL": spec("timm:resnet18\0"),
    "a colour of the terminal": spec("timm:\x1b[31m"),
    "two points": spec("torchvision:../resnet18"),
    "an unknown name": spec("cifar:resnet21"),
    "kwargs as a list": {"kind": "timm", "name": "resnet18", "kwargs": [1]},
    "kwargs as a number": {"kind": "timm", "name": "resnet18", "kwargs": 1},
    "kwargs as a string": {"kind": "timm", "name": "resnet18", "kwargs": "num_classes"},
    "a number as key": {"kind": "cifar", "name": "resnet20", "kwargs": {1: 2}},
    "a private key": spec("cifar:resnet20", __class__=1),
    "a list as number": spec("timm:resnet18", num_classes=[10]),
    "a word as number": spec("torchvision:resnet18", num_classes="ten"),
    "a negative number": spec("cifar:resnet20", num_classes=-5),
    "a fraction": spec("cifar:resnet20", num_classes=2.5),
    "NaN": spec("timm:resnet18", drop_rate=float("nan")),
    "infinity": spec("timm:resnet18", drop_rate=float("inf")),
    "an unknown argument": spec("torchvision:resnet18", no_such_argument=1),
    "bytes": spec("timm:resnet18", act_layer=b"relu"),
    "a long word": spec("timm:resnet18", act_layer="r" * 10**7),
    "a sentence": spec("timm:resnet18", act_layer="import os"),
    "deep": spec("timm:resnet18", num_classes=nested(100_000)),
    "wide": spec("demo:digits", widths=[8] * 10**6),
    "too few widths": spec("demo:digits", widths=[8]),
    "a negative width": spec("demo:digits", widths=[8, 8, -8]),
    "a large number": spec("timm:resnet18", num_classes=10**12),
    "a number of many digits": spec("timm:resnet18", num_classes=10**5000),
    "many layers": spec("timm:vit_tiny_patch16_224", depth=10**9),
    "a large fraction": spec("timm:resnet18", drop_rate=1e300),
    "large numbers together": spec("timm:resnet18", num_classes=10**6, in_chans=10**6),
    "wide layers": spec("demo:digits", widths=[10**6] * 3),
    "a large image": spec("timm:vit_tiny_patch16_224", img_size=10**6),
    "windows": spec("timm:swin_tiny_patch4_window7_224", img_size=8000, window_size=250),
    "wide layers of torchvision": spec("torchvision:resnet50", width_per_group=10**6),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_source_is_one_clear_error(damaged):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError) as caught:
        rebuild(damaged)
    text = str(caught.value)
    assert len(text) < 800 and text.isprintable()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GIGABYTE / 2


def test_an_error_of_any_kind_becomes_one_line(monkeypatch):
    from norton_plugin.zoo import cifar

    for error in (MemoryError("no\nmemory"), RecursionError("deep"), ZeroDivisionError(), KeyError("key")):

        def raises(*args: Any, error: Exception = error, **kwargs: Any) -> Built:
            raise error

        monkeypatch.setattr(cifar, "build", raises)
        with pytest.raises(SourceError, match=f"cifar:resnet20 cannot be built .*{type(error).__name__}"):
            rebuild(spec("cifar:resnet20"))


@pytest.mark.parametrize(
    ("source", "kwargs"),
    [
        (
            "timm:resnet18",
            {"num_classes": 7, "in_chans": 1, "drop_rate": 0.1, "act_layer": "gelu", "stem_type": "deep"},
        ),
        ("timm:resnet18", {"norm_layer": "groupnorm", "output_stride": 16, "global_pool": "catavgmax"}),
        ("timm:resnet18", {"features_only": True, "out_indices": [2, 3]}),
        ("timm:resnet18", {"scriptable": True, "aa_layer": "blurpc", "replace_stem_pool": True}),
        ("timm:mobilenetv3_small_050", {"drop_path_rate": 0.05, "num_classes": 0, "global_pool": ""}),
        ("timm:vit_tiny_patch16_224", {"img_size": [64, 96], "class_token": False, "global_pool": "avg", "depth": 2}),
        ("timm:resnet18.a1_in1k", {}),
        ("torchvision:resnet50", {"num_classes": 3, "zero_init_residual": True, "width_per_group": 32}),
        ("torchvision:googlenet", {"aux_logits": False, "transform_input": True}),
        ("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", {"image_mean": [0.1, 0.2, 0.3], "box_score_thresh": 0.3}),
        ("torchvision:lraspp_mobilenet_v3_large", {"num_classes": 2}),
        ("torchvision:quantized_resnet18", {"num_classes": 5}),
        ("cifar:densenet40", {"num_classes": 3}),
        ("demo:digits", {"widths": [4, 4, 8], "num_classes": 3}),
    ],
)
def test_what_the_user_gave_comes_back(source, kwargs):
    kind, name = source.split(":")
    from norton_plugin.zoo import sources

    built = sources._ecosystem(kind).build(name, kwargs=kwargs)
    again = rebuild(json.loads(json.dumps({"kind": kind, "name": name, "kwargs": built.kwargs})))
    wanted = {name: value.shape for name, value in built.model.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == wanted
    assert [str(module) for module in again.modules()] == [str(module) for module in built.model.modules()]


def test_weights_that_the_user_names_are_not_stored(tmp_path):
    """They were loaded; what they decided about the architecture is written out."""
    model = load_source("timm:resnet18", num_classes=5).model
    torch.save(model.state_dict(), tmp_path / "a.pth")
    kwargs = {"checkpoint_path": str(tmp_path / "a.pth"), "pretrained_cfg_overlay": {"num_classes": 5}}
    source = load_source("timm:resnet18", kwargs=kwargs)
    assert torch.equal(source.model.fc.weight, model.fc.weight)
    assert source.spec["kwargs"] == {"num_classes": 5}
    assert rebuild(source.spec).fc.out_features == 5


def test_trust_takes_arguments_as_they_are(tmp_path):
    model = load_source("timm:resnet18").model
    torch.save(model.state_dict(), tmp_path / "a.pth")
    stored = spec("timm:resnet18", checkpoint_path=str(tmp_path / "a.pth"))
    assert torch.equal(rebuild(stored, trust_code=True).fc.weight, model.fc.weight)
    assert isinstance(
        rebuild(spec("python:torch.nn:Linear", in_features=2, out_features=3), trust_code=True), nn.Linear
    )
