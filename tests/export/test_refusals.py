"""What cannot be exported is refused with its reason, and leaves nothing behind."""

import builtins
import errno
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from norton_plugin.errors import ExportError, MissingExtraError
from norton_plugin.export import Int8, export, writing


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x[..., :4, :4]).real


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


def around(module):
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), module)).eval()


def test_the_module_to_blame_is_named(example, tmp_path, capfd):
    with pytest.raises(
        ExportError, match=r"the exporter refuses module '1\.1': GuardOnDataDependentSymNode: Could not"
    ):
        export(around(Branching()), example, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_module_whose_operation_onnx_lacks_is_named(example, tmp_path):
    with pytest.raises(
        ExportError, match=r"exporter to ONNX refuses module '1\.1'.*No ONNX function found.*linalg_eig"
    ):
        export(around(Eigen()), example, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fixes_its_batch(example, tmp_path):
    model = around(FixedBatch())
    with pytest.raises(ExportError, match="give the batch it is made for|--batch"):
        export(model, torch.cat([example, example]), tmp_path / "a.onnx")
    report = export(model, torch.cat([example, example]), tmp_path / "a.onnx", batch=2)
    assert report.checks[0].shapes == ((2, 3, 12, 16), (2, 3, 12, 16))


def test_an_operator_that_one_runtime_lacks_is_named_and_the_other_one_may_do(example, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()).eval()
    with pytest.raises(ExportError) as refused:
        export(model, example, tmp_path / "a.onnx")
    assert "openvino does not open the file (RuntimeError: Unsupported padding mode: [wrap])" in str(refused.value)
    assert "--check onnxruntime" in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    report = export(model, example, tmp_path / "a.onnx", runtimes=["onnxruntime"])
    assert [check.runtime for check in report.checks] == ["onnxruntime"] and (tmp_path / "a.onnx").is_file()


@pytest.mark.parametrize("runtimes", [[], ["onnxruntime", "tensorrt"]])
def test_runtimes_that_nothing_checks_in_are_refused(example, tmp_path, runtimes):
    with pytest.raises(ExportError, match=r"expected one or more of onnxruntime, openvino \(--check NAME\)"):
        export(nn.Conv2d(3, 4, 3), example, tmp_path / "a.onnx", runtimes=runtimes)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_that_differs_is_not_left(small, example, tmp_path, monkeypatch, suffix):
    (tmp_path / f"a.{suffix}").write_text("before")
    lowered = writing.inference_copy

    def wrong(*arguments, **named):
        copied = lowered(*arguments, **named)
        with torch.no_grad():
            copied.head.weight += 1.0
        return copied

    monkeypatch.setattr(writing, "inference_copy", wrong)
    with pytest.raises(ExportError, match=r"the check failed: .* differs from PyTorch by .*; expected at most 0\.001"):
        export(small, example, tmp_path / f"a.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]
    assert (tmp_path / f"a.{suffix}").read_text() == "before"


def test_weights_that_were_multiplied_out_are_found(small, example, tmp_path, monkeypatch):
    monkeypatch.setattr("norton_plugin.export.checks._SLACK", -30_000)
    with pytest.raises(ExportError, match="the file holds .* bytes of constants, and the lowered model .* of weights"):
        export(small, example, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ExportError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_stops_half_way_leaves_nothing(small, example, tmp_path, monkeypatch, failure, expected):
    import onnx

    def half(proto, path):
        path.write_bytes(proto.SerializeToString()[:1000])
        raise failure

    monkeypatch.setattr(onnx, "save", half)
    (tmp_path / "a.onnx").write_text("before")
    with pytest.raises(expected):
        export(small, example, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert (tmp_path / "a.onnx").read_text() == "before"


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [("openvino", {}, "export"), ("nncf", {"int8": Int8([torch.zeros(1, 3, 12, 16)], runtime="openvino")}, "int8")],
)
def test_a_missing_package_is_named_with_its_extra(small, example, tmp_path, monkeypatch, absent, arguments, extra):
    found = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == absent:
            raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)
        return found(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        MissingExtraError, match=rf"{absent} is not installed; run: pip install 'norton-plugin\[{extra}\]'"
    ):
        export(small, example, tmp_path / "a.onnx", **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.txt", {}, r"should end in \.onnx or \.pt2"),
        ("a.onnx", {"batch": 0}, "batch is 0, expected at least 1"),
        ("a.pt2", {"int8": Int8([torch.zeros(1, 3, 12, 16)])}, "int8 is made from an ONNX file"),
        ("a.onnx", {"int8": Int8([torch.zeros(1, 3, 12, 16)]), "batch": 2}, "calibration runs one image at a time"),
        (".", {}, "should end in"),
    ],
)
def test_arguments_that_do_not_fit(small, example, tmp_path, name, arguments, message):
    with pytest.raises(ExportError, match=message):
        export(small, example, tmp_path / name, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_stays(small, example, tmp_path):
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(ExportError, match="is a folder; give the name of a file"):
        export(small, example, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calibration": []}, "there are no images to calibrate on"),
        (
            {"calibration": [torch.zeros(1)], "runtime": "tensorrt"},
            "runtime is 'tensorrt', expected one of onnxruntime",
        ),
        ({"calibration": [torch.zeros(1)], "labels": [1, 2]}, "2 labels for 1 images"),
    ],
)
def test_settings_of_int8_that_do_not_fit(arguments, message):
    with pytest.raises(ExportError, match=message):
        Int8(**arguments)


@dataclass
class KeyPoints:
    places: torch.Tensor
    maps: list[torch.Tensor]


class Nothing:
    def __init__(self, hidden):
        self.__hidden = (hidden,)


def test_the_fields_of_a_dataclass_are_outputs(example, tmp_path):
    class Finder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            maps = self.conv(x)
            return KeyPoints(maps.mean((2, 3)), [maps, maps.relu()])

    report = export(Finder().eval(), example, tmp_path / "a.onnx", runtimes=("onnxruntime",))
    assert report.outputs == ("places", "maps_0", "maps_1")


def test_an_object_that_hides_its_tensors_is_named(example, tmp_path):
    class Hiding(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return Nothing(self.conv(x))

    with pytest.raises(ExportError, match="returns a Nothing in which no tensor is found, .* dataclasses of them"):
        export(Hiding().eval(), example, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_outputs_change_from_run_to_run(example, tmp_path):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("runs", torch.ones(()))

        def forward(self, x):
            self.runs += 1
            return self.conv(x) * self.runs

    model = Counting().eval()
    for name in ("a.onnx", "a.pt2"):
        with pytest.raises(ExportError, match="other values each time it runs on one input"):
            export(model, example, tmp_path / name)
    assert list(tmp_path.iterdir()) == [] and model.runs == 1
