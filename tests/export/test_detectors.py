"""Detectors of mmdet end at the tensors of their heads."""

import sys
from pathlib import Path

import pytest
import torch

from norton_plugin.export import export

pytestmark = pytest.mark.mm
sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))


@pytest.mark.parametrize(
    ("name", "words", "count"),
    [
        ("retinanet", "backbone, neck and the tensors of the head (mode 'tensor')", 10),
        ("faster_rcnn", "backbone, neck and the tensors of the RPN head, without the RoI heads", 15),
    ],
)
def test_a_detector_is_exported_up_to_its_heads(tmp_path, name, words, count):
    import detectors
    import onnxruntime
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import ConfigDict

    from norton_plugin.zoo import exported_part

    register_all_modules()
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(getattr(detectors, name)())).eval()
    part, covered = exported_part({"kind": "mmdet"}, model)
    assert covered == words
    report = export(model, torch.randn(1, 3, 64, 64), tmp_path / "a.onnx", forward_fn=part)
    assert (len(report.outputs), report.open_axes) == (count, ("batch",))
    x = torch.randn(3, 3, 64, 64)
    found = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).run(None, {"input": x.numpy()})
    with torch.no_grad():
        pyramid = model.extract_feat(x)
        scores, boxes = (model.bbox_head if name == "retinanet" else model.rpn_head)(pyramid)
    expected = [*scores, *boxes] if name == "retinanet" else [*pyramid, *scores, *boxes]
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, torch.from_numpy(other), atol=1e-4)
