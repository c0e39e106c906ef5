"""``norton export``: files from artefacts, what is said of them, and what is refused."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from norton_plugin import load
from norton_plugin.cli.export import _show
from norton_plugin.cli.output import Output
from norton_plugin.export.checks import Check
from norton_plugin.export.report import ExportReport

for _name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(_name, reason="needs pip install 'norton-plugin[export]'")
import onnxruntime  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def artefact(tmp_path_factory):
    from norton_plugin.cli.app import run

    folder = tmp_path_factory.mktemp("exported") / "small"
    assert run(["compress", "demo:digits", "--rank", "2", "--keep", "0.75", "-o", str(folder)]) == 0
    return folder


def test_an_artefact_becomes_a_file_for_another_runtime(norton, artefact, tmp_path):
    answer = norton("export", artefact, "-o", tmp_path / "a.onnx")
    assert (answer.code, answer.err) == (0, "")
    told = " ".join(answer.out.split())
    assert "the whole model" in told and "ONNX, opset 18; open: batch" in told
    assert "onnxruntime agrees with PyTorch to" in told and "openvino agrees with PyTorch to" in told
    x = torch.randn(7, 1, 16, 16)
    found = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), load(artefact)(x), atol=1e-5)


def test_int8_from_a_folder_of_classes(norton, artefact, digit_folder, tmp_path):
    arguments = ("--int8", "--data", digit_folder / "train", "--calibration-images", 30, "--images", 10)
    answer = norton("export", artefact, "-o", tmp_path / "a.onnx", *arguments, "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.int8.onnx", "a.onnx"]
    assert found["part"] == "the whole model"
    int8 = found["int8"]
    assert (int8["path"], int8["runtime"]) == (str(tmp_path / "a.int8.onnx"), "onnxruntime")
    assert (int8["calibration_images"], int8["images"]) == (30, 10)
    assert int8["agreement"] >= 80.0
    assert 0.0 <= int8["int8_top1"] <= 100.0 and 0.0 <= int8["fp32_top1"] <= 100.0


def test_images_that_cannot_be_read_are_left_out_and_named(norton, artefact, digit_folder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index, path in enumerate(sorted((digit_folder / "test").rglob("*.png"))):
        (folder / f"{index}.png").write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    answer = norton("export", artefact, "-o", tmp_path / "a.onnx", "--int8", "--data", folder)
    assert answer.code == 0
    assert "left out:" in answer.err and "broken.png" in answer.err
    assert "no images left to compare on" in answer.err
    told = " ".join(answer.out.split())
    assert "calibrated on 20 images; on 20 images" in told
    assert "top-1 " not in told.replace("the same top-1", "")  # no classes, no accuracy


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.txt", (), "should end in .onnx or .pt2"),
        ("a.onnx", ("--opset", 99), "opset 99 is unknown"),
        ("a.onnx", ("--int8",), "--int8 and --data belong together"),
        ("none/a.onnx", (), "is in a folder that is not there; make it first"),
        (".", (), "is a folder; give the name of a file"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(norton, artefact, tmp_path, name, arguments, message):
    answer = norton("export", artefact, "-o", tmp_path / name, *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert list(tmp_path.iterdir()) == []


def test_another_runtime_than_there_is(norton, artefact, digit_folder, tmp_path):
    arguments = ("--int8", "--data", digit_folder / "test", "--runtime", "tensorrt")
    answer = norton("export", artefact, "-o", tmp_path / "a.onnx", *arguments)
    assert answer.code == 2
    assert "runtime is 'tensorrt', expected one of onnxruntime, openvino" in answer.err


def test_a_detector_of_torchvision_is_written_whole(norton, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    from torchvision_detectors import detector, image

    monkeypatch.chdir(Path(__file__).parents[1])
    arguments = ("python:torchvision_detectors:detector", "--input-size", 64, "-o", tmp_path / "a.pt2")
    answer = norton("export", *arguments)
    assert (answer.code, answer.err) == (0, "")
    told = " ".join(answer.out.split())
    assert "the whole detector, for one image in [0, 1]: boxes, labels and scores, and the mask of the inside" in told
    assert "in 40 of 40 objects found on 1x3x64x64 and 1x3x64x64" in told
    assert "(a program of torch.export, for which torchvision has to be imported)" in told
    answer = norton("export", *arguments, "--batch", 2)
    assert answer.code == 2 and "takes one image at a time, not 2; leave out the batch" in answer.err
    answer = norton("export", *arguments[:-1], tmp_path / "a.onnx", "--int8", "--data", tmp_path)
    assert answer.code == 2 and "int8 of a whole detector is not made" in answer.err
    with torch.no_grad():
        expected = detector()(list(image()))[0]
    found = torch.export.load(tmp_path / "a.pt2").module()(image())
    torch.testing.assert_close(found[0], expected["boxes"], rtol=1e-3, atol=1e-3)


def test_a_check_that_says_little_is_told():
    """Of weights that are not trained, the model itself finds other objects after rounding."""
    said = io.StringIO()
    out = Output(as_json=False, verbose=False, threads=None, stdout=io.StringIO(), stderr=said)
    check = Check("onnxruntime", ((1, 3, 8, 8), (1, 3, 8, 8)), 1e-4, (20, 100), 0.2)
    report = ExportReport(Path("a.onnx"), "onnx", 18, ("x",), ("y",), (), 1000, 1000, 1000, (check,), 1.0)
    _show(out, report, "the whole detector", own_bytes=1000)
    told = " ".join(said.getvalue().split())
    assert "finds 20% of its objects again in an image changed by 1e-04" in told and "are the weights trained?" in told


@pytest.mark.parametrize("weights", [1_000_000, 3_000_000])
def test_a_file_that_is_larger_than_the_model_says_why(weights):
    said = io.StringIO()
    out = Output(as_json=False, verbose=False, threads=None, stdout=said, stderr=io.StringIO())
    report = ExportReport(Path("a.onnx"), "onnx", 18, ("x",), ("y",), (), 3_100_000, weights, weights, (), 1.0)
    _show(out, report, "the whole model", own_bytes=1_000_000)
    told = " ".join(said.getvalue().split())
    assert ("written as plain convolutions" in told) is (weights > 2_000_000)
    assert ("its weights take 2.86 MiB, those of the compressed model 0.95 MiB" in told) is (weights > 2_000_000)
