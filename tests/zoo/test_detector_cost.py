"""MACs of detectors: of all heads, on as many regions as the config asks for, whatever the weights propose."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
from detectors import faster_rcnn, retinanet
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from norton_plugin.cost import count_cost
from norton_plugin.modules.running import counted_by
from norton_plugin.zoo.detector_cost import run_tensor_mode
from norton_plugin.zoo.detector_parts import trace_of, without_heads

pytestmark = pytest.mark.mm
EXAMPLE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register_all_modules()


def build(config):
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(config)).eval()


def counted(model):
    trace, _ = trace_of(model, EXAMPLE)
    return count_cost(model, partial(counted_by(trace), model, EXAMPLE)), trace


def by_torch(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_tensor_mode(model, EXAMPLE)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("proposals", [20, 35])
def test_regions_are_those_of_the_config(proposals):
    config = faster_rcnn(mask=True)
    config["test_cfg"]["rpn"]["max_per_img"] = proposals
    model = build(config)
    cost, trace = counted(model)
    assert cost.macs == by_torch(model)
    assert trace.regions == f"with {proposals} regions (test_cfg.rpn.max_per_img), masks of {proposals}"
    assert cost.layer_macs["roi_head.bbox_head.fc_cls"] == proposals * 32 * 3
    assert sum(cost.layer_macs.values()) == cost.macs


def test_a_small_image_has_no_more_regions_than_candidates():
    config = faster_rcnn()
    config["test_cfg"]["rpn"] |= {"max_per_img": 1000, "nms_pre": 100}
    _, trace = counted(build(config))
    # Two anchors at each of 16 x 16, 8 x 8, 4 x 4, 2 x 2 and 1 x 1 places, at most 100 of a level.
    assert trace.regions == "with 242 regions (all candidates; test_cfg.rpn.max_per_img is 1000)"


def test_proposals_of_other_weights_do_not_change_the_count():
    first = build(faster_rcnn())
    cost, trace = counted(first)
    for parameter in first.rpn_head.parameters():
        torch.nn.init.zeros_(parameter)  # all boxes alike: little is left after the suppression of doubles
    assert count_cost(first, partial(trace.counted, first, EXAMPLE)).macs == cost.macs
    assert "predict" not in vars(first.rpn_head)


def test_heads_that_are_not_traced_are_counted():
    model = build(faster_rcnn())

    def no_parts(self, x):
        raise TypeError("not by itself")

    model.roi_head.bbox_head.forward, own = no_parts.__get__(model.roi_head.bbox_head), model.roi_head.bbox_head.forward
    _, covered = trace_of(model, EXAMPLE)
    assert "bbox_head" not in covered
    model.roi_head.bbox_head.forward = own
    trace, covered = without_heads(trace_of(model, EXAMPLE)[0])
    assert covered == "backbone and neck"
    assert count_cost(model, partial(counted_by(trace), model, EXAMPLE)).macs == by_torch(model)


def test_a_single_stage_is_counted_as_it_runs():
    model = build(retinanet())
    assert counted(model)[0].macs == by_torch(model)


def test_three_counters_agree_on_five_detectors(repository):
    """tools/benchmarks/detector_macs.py wrote them: the hook's, get_flops.py's and torch's, before and after."""
    rows = json.loads((repository / "docs/results/detector_macs.json").read_text())
    assert len(rows) == 5
    for name, row in rows.items():
        for hook, others in zip(row["hook"], zip(row["get_flops"], row["torch"], strict=True), strict=True):
            assert others == (pytest.approx(hook, rel=0.02),) * 2, name
