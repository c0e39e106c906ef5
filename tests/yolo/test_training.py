"""The trainer, the checkpoints and the exporter of Ultralytics keep a compressed model what it is."""

import subprocess
import sys

import pytest
import torch
from yolos import SIZE, image

from norton_plugin import ArtifactError, CPDBlock, Recipe
from norton_plugin.yolo import compress_yolo_
from norton_plugin.yolo.record import record_of

BOTH = Recipe.from_dict({"decomposition": {"rank": 3, "sweeps": 5}, "pruning": {"keep": 0.7}})
FAMILIES = ["yolov8n", *(pytest.param(name, marks=pytest.mark.slow) for name in ("yolo11n", "yolo12n"))]


def settings(data, folder, name, **more):
    return {"data": data, "imgsz": SIZE, "device": "cpu", "workers": 0, "plots": False, "project": folder, "name": name,
            "epochs": 1, "batch": 4, "mosaic": 0.0} | more  # fmt: skip


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.fixture(params=FAMILIES)
def small(request, build):
    yolo = build(request.param)
    compress_yolo_(yolo, BOTH, image_size=SIZE)
    return yolo


def test_the_stock_trainer_trains_the_compressed_model(small, self_labelled, tmp_path):
    from ultralytics import YOLO

    data = self_labelled(small.model)
    expected, record = shapes(small.model), record_of(small.model)
    weights = {name: value.detach().half() for name, value in small.model.named_parameters()}
    # At rate zero the parameters are those that training began with.
    still = {"optimizer": "SGD", "lr0": 0.0, "warmup_epochs": 0.0, "warmup_bias_lr": 0.0}
    small.train(**settings(data, tmp_path, "still", **still))
    assert shapes(small.model) == expected
    assert all(torch.equal(value.half(), weights[name]) for name, value in small.model.named_parameters())

    small.train(**settings(data, tmp_path, "moved", optimizer="AdamW", lr0=0.01))
    heads = [n for n, m in small.model.named_modules() if isinstance(m, CPDBlock)]
    assert heads and shapes(small.model) == expected
    assert all(not torch.equal(small.model.get_submodule(n).head.half(), weights[f"{n}.head"]) for n in heads)
    assert record_of(small.model) == record

    again = YOLO(tmp_path / "moved" / "weights" / "last.pt")
    assert (shapes(again.model), again.names) == (expected, {0: "red", 1: "white", 2: "plate"})
    again.train(**settings(data, tmp_path, "third"))
    assert shapes(again.model) == expected


def test_a_checkpoint_is_read_and_trained_where_nobody_imported_the_package(build, self_labelled, tmp_path):
    yolo = build("yolov8n")
    compress_yolo_(yolo, BOTH, image_size=SIZE)
    data = self_labelled(yolo.model)
    yolo.save(tmp_path / "small.pt")
    options = settings(str(data), str(tmp_path), "fresh")
    code = (
        "import sys; from ultralytics import YOLO; assert 'norton_plugin' not in sys.modules; "
        f"yolo = YOLO({str(tmp_path / 'small.pt')!r}); yolo.train(**{options!r}); "
        "print('PARAMETERS', sum(p.numel() for p in yolo.model.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"PARAMETERS {sum(p.numel() for p in yolo.model.parameters())}" in done.stdout


def test_weights_of_another_structure_are_refused(build):
    small, dense, other = build("yolov8n"), build("yolov8n"), build("yolo11n")
    compress_yolo_(small, BOTH, image_size=SIZE)
    with pytest.raises(ArtifactError, match="is compressed, and the weights are of a dense one"):
        small.load(dense.model)
    before = shapes(other.model)
    with pytest.raises(ArtifactError, match="not the one that was compressed"):
        other.load(small.model)
    assert shapes(other.model) == before and record_of(other.model) is None
    dense.load(build("yolov8n").model)  # two dense ones are none of our business


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_exported_files_predict_what_the_model_does(small, form, self_labelled, tmp_path):
    pytest.importorskip("onnxruntime")
    from ultralytics import YOLO

    data = self_labelled(small.model)
    images = image(11)[None] / 255
    with torch.no_grad():
        expected = small.model(images)[0]
    small.save(tmp_path / "small.pt")
    yolo = YOLO(tmp_path / "small.pt")
    path = yolo.export(format=form, imgsz=SIZE, **({"simplify": False} if form == "onnx" else {}))
    torch.testing.assert_close(run(path, form, images), expected, rtol=1e-3, atol=2e-3)  # saved in half precision
    options = settings(data, tmp_path, "exported", rect=False, batch=1)
    del options["epochs"], options["mosaic"]
    assert YOLO(path, task="detect").val(**options).box.map > 0.9


def run(path, form, images):
    if form == "torchscript":
        output = torch.jit.load(path)(images)
        return output if isinstance(output, torch.Tensor) else output[0]
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])


def test_images_are_predicted_from_a_saved_file(build, tmp_path):
    import cv2
    from ultralytics import YOLO
    from ultralytics.utils.nms import non_max_suppression

    yolo = build("yolov8n")
    compress_yolo_(yolo, BOTH, image_size=SIZE)
    yolo.model.half().float()  # as in the file
    with torch.no_grad():
        (expected,) = non_max_suppression(yolo.model(image(5)[None] / 255)[0], 0.2, 0.7)
    yolo.save(tmp_path / "small.pt")
    cv2.imwrite(str(tmp_path / "5.png"), image(5).flip(0).permute(1, 2, 0).numpy())
    (found,) = YOLO(tmp_path / "small.pt").predict(tmp_path / "5.png", imgsz=SIZE, conf=0.2, iou=0.7)
    assert len(expected) > 5
    torch.testing.assert_close(found.boxes.data, expected, rtol=1e-3, atol=1e-2)
