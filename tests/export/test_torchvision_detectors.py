"""Detectors of torchvision are exported whole; torchvision itself is the oracle."""

import sys
from pathlib import Path

import pytest
import torch

from norton_plugin import Recipe, compress
from norton_plugin.errors import ExportError
from norton_plugin.export import Int8, export, writing
from norton_plugin.zoo import exported_part

sys.path.insert(0, str(Path(__file__).parents[1]))
from torchvision_detectors import detector, image


def part_of(model):
    return exported_part({"kind": "torchvision"}, model)[0]


@pytest.mark.parametrize(
    "kind",
    ["mask", "retina", pytest.param("keypoint", marks=pytest.mark.slow), pytest.param("fcos", marks=pytest.mark.slow)],
)
def test_a_compressed_detector_finds_the_same_in_a_file(kind, tmp_path):
    import onnxruntime

    recipe = Recipe.from_dict({"decomposition": {"rank": 2}, "pruning": {"keep": 0.75}, "verify": False})
    model, report = compress(detector(kind), (image(),), recipe)
    assert report.macs_after < 0.8 * report.macs_before
    written = export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model))
    more = {"mask": ("masks",), "keypoint": ("heat_maps",)}.get(kind, ())
    assert set(written.outputs) == {"boxes", "labels", "scores", *more} and written.open_axes == ()
    for same, count in (check.alike for check in written.checks):  # two images each; rounding may exchange one box
        assert count >= 40 and same >= count - 1
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    images = image(seed=5)
    found = dict(zip(written.outputs, session.run(None, {"input": images.numpy()}), strict=True))
    with torch.no_grad():
        expected = model.eval()(list(images))[0]
    assert len(expected["boxes"]) >= 10
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(torch.from_numpy(found[name]), expected[name], rtol=1e-3, atol=1e-3)


def test_the_file_keeps_the_least_score_and_is_checked_with_a_lower_one(tmp_path):
    import onnxruntime

    model = detector("faster")
    model.roi_heads.score_thresh = 0.99  # nothing is found
    written = export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model))
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    assert [check.runtime for check in written.checks] == ["onnxruntime", "openvino"]
    assert all(same >= 20 for same, _ in (check.alike for check in written.checks))
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    boxes, labels, scores = session.run(None, {"input": image().numpy()})
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))
    assert model.roi_heads.score_thresh == 0.99


def test_a_program_of_torch_export_finds_any_number_of_boxes(tmp_path):
    model = detector("faster")
    model.roi_heads.score_thresh = 0.33
    written = export(model, image(), tmp_path / "a.pt2", forward_fn=part_of(model))
    assert written.checks[0].runtime == "torch.export"
    program, counts = torch.export.load(tmp_path / "a.pt2").module(), set()
    for seed in range(40):
        images = image(seed)
        with torch.no_grad():
            expected = model(list(images))[0]
        counts.add(len(expected["boxes"]))
        for tensor, name in zip(program(images), written.outputs, strict=True):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3)
    assert {0, 1, 2, 3} <= counts


def test_what_no_check_could_tell_of_is_refused(tmp_path):
    model = detector("faster")
    with pytest.raises(ExportError, match="takes images of one size; leave out dynamic_size"):
        export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model), dynamic_size=True)
    with pytest.raises(ExportError, match=r"forward_fn of norton_plugin\.zoo\.exported_part"):
        export(torch.nn.Sequential(model), image(), tmp_path / "a.onnx", batch=1)
    with torch.no_grad():
        model.backbone.stem[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ExportError, match="finds nothing in noise, however low the score"):
        export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model))
    model = detector("faster")
    with torch.no_grad():
        model.roi_heads.box_predictor.bbox_pred.bias.fill_(torch.nan)
    with pytest.raises(ExportError, match="finds nothing in noise|values that are not finite"):
        export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model))
    assert list(tmp_path.iterdir()) == []


def test_steps_that_find_something_else_than_torchvision_are_refused(tmp_path, monkeypatch):
    from norton_plugin.zoo import torchvision_export

    own = torchvision_export._batched_nms
    monkeypatch.setattr(torchvision_export, "_batched_nms", lambda *given: own(*given)[::2])
    model = detector("faster")
    with pytest.raises(ExportError, match="what replaces the model's own steps finds"):
        export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("least_score", [0.2, 0.99])
def test_a_runtime_that_finds_other_boxes_is_refused(tmp_path, monkeypatch, least_score):
    opened = writing.open_file

    def wrong(path, **options):
        run = opened(path, **options)

        def moved(inputs):
            boxes, *others = run(inputs)
            return [boxes + torch.tensor([3.0, 0, 3.0, 0]), *others]

        return moved

    monkeypatch.setattr(writing, "open_file", wrong)
    model = detector("faster")
    model.roi_heads.score_thresh = least_score
    with pytest.raises(
        ExportError, match=r"onnxruntime finds \d of \d+ objects as the model does in PyTorch.*at least \d+%"
    ):
        export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model))
    assert list(tmp_path.iterdir()) == []


def test_one_image_at_a_time(tmp_path):
    model = detector("faster")
    with pytest.raises(ExportError, match="takes one image at a time, not 2"):
        export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model), batch=2)
    int8 = Int8([image()])
    with pytest.raises(ExportError, match="int8 of a whole detector is not made"):
        export(model, image(), tmp_path / "a.onnx", forward_fn=part_of(model), int8=int8)
    assert list(tmp_path.iterdir()) == []
