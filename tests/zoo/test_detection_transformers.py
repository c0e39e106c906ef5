"""Detection transformers of mmdet: what is pruned, what is left and why, and that what was pruned can be trained."""

import json

import pytest
import torch

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.structures import InstanceData

from norton_plugin import Recipe, compress
from norton_plugin.modules.output_selection import output_selection
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.report import blocking
from norton_plugin.surgery.structure import apply_structure_, diff
from norton_plugin.zoo import detector_parts as zoo
from tests.detection_transformers import transformer

pytestmark = pytest.mark.mm
EXAMPLE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 8}})
SINES_IN_THE_DECODER = {"decoder.query_scale.layers.1": "fixed-width-tensor"}
LEFT = {
    "detr": {},
    "conditional": SINES_IN_THE_DECODER,
    "dab": SINES_IN_THE_DECODER,
    "deformable": {},
    "dino": {},
    "ddq": {},
}


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register_all_modules()


def loss(model: torch.nn.Module) -> float:
    """Of one image with one object, in training mode."""
    facts = dict.fromkeys(("img_shape", "batch_input_shape", "pad_shape", "ori_shape"), (64, 64))
    sample = DetDataSample(metainfo={**facts, "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[5.0, 5.0, 30.0, 40.0]]), labels=torch.tensor([1]))
    found = model.train().loss(EXAMPLE, [sample])
    total = sum(sum(value) if isinstance(value, list) else value for value in found.values())
    total.backward()
    model.eval()
    return float(total.detach())


@pytest.mark.parametrize("kind", LEFT)
def test_it_is_pruned_trains_and_is_rebuilt(kind):
    net = transformer(kind)
    trace, covered = zoo.trace_of(net, EXAMPLE)
    small, report = compress(net, EXAMPLE, RECIPE, forward_fn=trace)
    assert covered == "the whole detector" and report.largest_error < 1e-5
    left = {entry.name: entry.code for entry in blocking(report.pruning.skipped)}
    assert left == LEFT[kind] and report.status == ("partial" if left else "full")
    encodings = [module for module in small.modules() if type(module).__name__ == "SinePositionalEncoding"]
    assert [len(output_selection(module).kept) for module in encodings] == [128]
    assert small.decoder.layers[0].ffn.layers[1].out_features == 128
    rebuilt = transformer(kind)
    apply_structure_(rebuilt, json.loads(json.dumps(diff(geometry(transformer(kind)), geometry(small)))))
    rebuilt.load_state_dict(small.state_dict())
    for model in (small, rebuilt):
        assert 0 < loss(model) < float("inf")
    with torch.no_grad():
        for a, b in zip(_tensors(trace(small, EXAMPLE)), _tensors(trace(rebuilt, EXAMPLE)), strict=True):
            assert torch.equal(a, b)


def _tensors(outputs) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
