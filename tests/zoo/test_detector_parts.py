"""Tracing detectors of mmdet, cut where it has to be."""

import copy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
from detectors import detected, faster_rcnn, retinanet
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict

from norton_plugin import CPDBlock, Recipe, compress
from norton_plugin.calibration.divergence import Comparison
from norton_plugin.channels import ChannelGraph
from norton_plugin.zoo import detector_parts as zoo
from norton_plugin.zoo import load_source

pytestmark = pytest.mark.mm
RECIPE = Recipe.from_dict({"decomposition": {"rank": 2}, "pruning": {"keep": 0.5}})
EXAMPLE = torch.randn(1, 3, 64, 64)


@pytest.fixture(autouse=True, scope="module")
def _registered():
    register_all_modules()


def build(config):
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(config))


@pytest.fixture(scope="module")
def mask_rcnn(_registered):
    model = build(faster_rcnn(mask=True))
    trace, covered = zoo.trace_of(model, EXAMPLE)
    return model, *compress(model, EXAMPLE, RECIPE, forward_fn=trace), covered


def test_single_stage_is_traced_whole():
    model = build(retinanet())
    trace, covered = zoo.trace_of(model, EXAMPLE)
    assert covered == "the whole detector"
    compressed, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert [s.name for s in report.pruning.skipped if s.code == "model-output"] == [
        "bbox_head.retina_cls",
        "bbox_head.retina_reg",
    ]
    assert {group.after for group in report.pruning.groups if group.root.startswith("bbox_head")} == {8}
    # One head for five levels (T15): its parts stand in the structure once, and calls add up.
    assert isinstance(compressed.bbox_head.cls_convs[0].conv, CPDBlock)
    shapes = [tuple(t.shape) for level in model(EXAMPLE) for t in level]
    assert [tuple(t.shape) for level in compressed(EXAMPLE) for t in level] == shapes


def test_two_stages_are_traced_through_their_pooling(mask_rcnn):
    """Every part is decomposed and pruned, and so is the pyramid with all that reads its regions (T14)."""
    model, compressed, report, covered = mask_rcnn
    assert covered == "backbone and neck, rpn_head, roi_head"
    pruned = {group.root.split(".")[0] for group in report.pruning.groups}
    assert pruned == {"backbone", "neck", "rpn_head", "roi_head"}
    decomposed = {layer.names[0].split(".")[0] for layer in report.decomposition.layers}
    assert {"backbone", "neck", "roi_head"} <= decomposed
    head = compressed.roi_head
    for conv in compressed.neck.fpn_convs:
        assert conv.conv.out_channels == compressed.rpn_head.rpn_conv.in_channels == 8
    assert head.bbox_roi_extractor.out_channels == head.mask_roi_extractor.out_channels == 8
    assert compressed.neck.lateral_convs[0].conv.out_channels == 8
    fcs = head.bbox_head.shared_fcs
    assert (fcs[0].in_features, fcs[0].out_features, fcs[1].in_features) == (8 * 49, 16, 16)
    assert compressed.roi_head.bbox_head.fc_cls.out_features == 3
    assert compressed.roi_head.mask_head.convs[0].conv.in_channels == 8
    assert compressed.roi_head.mask_head.convs[0].conv.out_channels == 8
    assert model.neck.lateral_convs[0].conv.out_channels == 16  # the model passed in is untouched


def test_a_compressed_two_stage_detector_detects(mask_rcnn):
    found = detected(mask_rcnn[1], EXAMPLE)
    assert len(found) == 10 and found.masks.shape[1:] == (64, 64)


def silenced(model, layer):
    """Let the filters of a layer put out zeros from the middle on."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[len(parameter) // 2 :] = 0


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade"])
def test_a_narrow_pyramid_finds_what_the_silenced_one_finds(kind):
    """Proposals, boxes and masks as mmdet predicts them: the pyramid's last channels are zero, and then gone."""
    model = build(cascade() if kind == "cascade" else faster_rcnn(mask=kind == "mask")).eval()
    for conv in model.neck.fpn_convs:
        silenced(model, conv)
    trace, covered = zoo.trace_of(model, EXAMPLE)
    assert covered == "backbone and neck, rpn_head, roi_head"
    expected = detected(model, EXAMPLE)
    graph = ChannelGraph(model, EXAMPLE, forward_fn=trace)
    graph.prune("neck.fpn_convs.0.conv", range(8, 16))
    assert [level.shape[1] for level in zoo.features(model, EXAMPLE)] == [8] * 5
    found = detected(model, EXAMPLE)
    assert len(found) == len(expected) > 0
    assert torch.allclose(found.bboxes, expected.bboxes, atol=1e-3) and torch.equal(found.labels, expected.labels)
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    if kind == "mask":
        assert torch.equal(found.masks, expected.masks)


def cascade():
    """Two stages, the second of which reads regions that the first has refined."""
    model = faster_rcnn()
    head, rcnn = model["roi_head"], model["train_cfg"]["rcnn"]
    model["type"], model["train_cfg"]["rcnn"] = "CascadeRCNN", [rcnn, rcnn]
    bbox_heads = [{**head["bbox_head"], "reg_class_agnostic": True} for _ in range(2)]
    stages = {"type": "CascadeRoIHead", "num_stages": 2, "stage_loss_weights": [1, 0.5], "bbox_head": bbox_heads}
    model["roi_head"] = {**head, **stages}
    return model


def test_pooling_that_cannot_be_followed_keeps_the_pyramid():
    """Torchvision has no RoIAlign by maxima: the parts run on stand-ins of regions, and their input keeps its width."""
    config = faster_rcnn()
    config["roi_head"]["bbox_roi_extractor"]["roi_layer"]["pool_mode"] = "max"
    model = build(config).eval()
    trace, covered = zoo.trace_of(model, EXAMPLE)
    assert covered == "backbone and neck, rpn_head, roi_head.bbox_head"
    compressed, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert "neck.fpn_convs.0.conv" in [s.name for s in report.pruning.skipped if s.code == "model-output"]
    assert compressed.roi_head.bbox_roi_extractor.out_channels == 16
    fcs = compressed.roi_head.bbox_head.shared_fcs
    assert (fcs[0].in_features, fcs[0].out_features) == (16 * 49, 16)
    assert len(detected(compressed, EXAMPLE)) > 0


def htc():
    """Two stages whose mask heads read one another's features, and a semantic head on the pyramid."""
    model = faster_rcnn(mask=True)
    plain, rcnn = model["roi_head"], model["train_cfg"]["rcnn"]
    mask = {**plain["mask_head"], "type": "HTCMaskHead"}
    model["type"] = "HybridTaskCascade"
    model["train_cfg"]["rcnn"] = [rcnn, rcnn]
    model["roi_head"] = {
        **plain,
        "type": "HybridTaskCascadeRoIHead",
        "num_stages": 2,
        "stage_loss_weights": [1, 0.5],
        "interleaved": True,
        "mask_info_flow": True,
        "bbox_head": [{**plain["bbox_head"], "reg_class_agnostic": True} for _ in range(2)],
        "mask_head": [{**mask, "with_conv_res": later} for later in (False, True)],
        "semantic_roi_extractor": {**plain["mask_roi_extractor"], "featmap_strides": [8]},
        "semantic_head": {
            "type": "FusedSemanticHead",
            "num_ins": 5,
            "fusion_level": 1,
            "num_convs": 2,
            "in_channels": 16,
            "conv_out_channels": 16,
            "num_classes": 3,
        },
    }
    return model


def test_mask_heads_that_read_one_another():
    """Stages whose regions training alone pools are not seen by a trace, and must fit the pyramid: it stays."""
    model = build(htc()).eval()
    trace, covered = zoo.trace_of(model, EXAMPLE)
    heads = "roi_head.semantic_head, roi_head.bbox_head.0, roi_head.bbox_head.1, roi_head.mask_head"
    assert covered == f"backbone and neck, rpn_head, {heads}"
    compressed, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert not [s for s in report.pruning.skipped if s.code == "not-traced"]
    assert report.pruning.largest_error < 1e-4
    first, second = compressed.roi_head.mask_head
    # The second head reads the features of the first, on which it adds regions as wide as the pyramid.
    assert first.convs[-1].conv.out_channels == second.conv_res.conv.in_channels == 8
    assert second.conv_res.conv.out_channels == 16
    semantic = compressed.roi_head.semantic_head
    assert semantic.lateral_convs[0].conv.out_channels == semantic.convs[0].conv.in_channels == 8
    assert semantic.conv_embedding.conv.out_channels == 16

    assert detected(compressed, EXAMPLE).masks.shape == (10, 64, 64)


def test_what_is_added_to_regions_keeps_the_width_of_the_pyramid():
    """They hold channels of the pyramid, whose outputs keep their width: no tensor of fixed width is met."""
    model = build(htc()).eval()
    trace, _ = zoo.trace_of(model, EXAMPLE)
    _, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert report.status == "full"


def double_heads():
    """Two branches, one for classes and one for boxes, that read regions of two sizes."""
    model = faster_rcnn()
    head = {key: value for key, value in model["roi_head"]["bbox_head"].items() if key != "num_shared_fcs"}
    model["roi_head"]["type"] = "DoubleHeadRoIHead"
    model["roi_head"]["reg_roi_scale_factor"] = 1.3
    branches = {"num_convs": 1, "num_fcs": 1, "conv_out_channels": 32}
    model["roi_head"]["bbox_head"] = {**head, "type": "DoubleConvFCBBoxHead", "fc_out_channels": 16, **branches}
    return model


def test_a_head_that_needs_more_than_regions_runs_in_its_own_mode_tensor():
    model = build(double_heads()).eval()
    trace, covered = zoo.trace_of(model, EXAMPLE)
    assert covered == "backbone and neck, rpn_head, roi_head"
    compressed, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert report.status == "full" and report.pruning.largest_error < 1e-4
    head = compressed.roi_head.bbox_head
    assert head.fc_branch[0].out_features == head.fc_cls.in_features == 8
    assert head.fc_branch[0].in_features == 8 * 49
    # Region pooling is its own again.
    assert all("forward" not in vars(module) for module in model.modules())


def mask_scoring():
    model = faster_rcnn(mask=True)
    model["type"] = "MaskScoringRCNN"
    model["roi_head"]["type"] = "MaskScoringRoIHead"
    sizes = {"in_channels": 16, "conv_out_channels": 16, "fc_out_channels": 16, "num_classes": 2}
    model["roi_head"]["mask_iou_head"] = {"type": "MaskIoUHead", "num_convs": 2, "num_fcs": 1, **sizes}
    model["train_cfg"]["rcnn"]["mask_thr_binary"] = 0.5
    return model


def test_a_head_that_reads_another_head_is_traced_with_it():
    model = build(mask_scoring()).eval()
    trace, covered = zoo.trace_of(model, EXAMPLE)
    assert covered.endswith("rpn_head, roi_head")
    compressed, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert report.status == "full"
    assert compressed.roi_head.mask_iou_head.convs[0].out_channels == 8


def point_rend():
    """A head that refines masks at the points where they are least certain."""
    model = faster_rcnn(mask=True)
    model["type"], model["roi_head"]["type"] = "PointRend", "PointRendRoIHead"
    extractor = model["roi_head"]["mask_roi_extractor"]
    pooled = {"type": "SimpleRoIAlign", "output_size": 14}
    model["roi_head"]["mask_roi_extractor"] = {**extractor, "type": "GenericRoIExtractor", "roi_layer": pooled}
    coarse = {"num_fcs": 1, "in_channels": 16, "conv_out_channels": 16, "fc_out_channels": 32, "num_classes": 2}
    model["roi_head"]["mask_head"] = {"type": "CoarseMaskHead", **coarse}
    fine = {"num_fcs": 2, "in_channels": 64, "fc_channels": 16, "num_classes": 2, "coarse_pred_each_layer": True}
    model["roi_head"]["point_head"] = {"type": "MaskPointHead", **fine}
    points = {"subdivision_steps": 2, "subdivision_num_points": 40, "scale_factor": 2}
    model["test_cfg"]["rcnn"] |= points
    return model


def test_masks_are_refined_at_the_same_points_in_every_run(monkeypatch):
    """Two models that compute nearly the same are not certain at other points; what they say there can be compared."""
    model = build(point_rend()).eval()
    trace, covered = zoo.trace_of(model, EXAMPLE)
    assert covered.endswith("roi_head.mask_head, roi_head.point_head")
    points, head = [], type(model.roi_head)
    own = head._get_fine_grained_point_feats
    monkeypatch.setattr(
        head, "_get_fine_grained_point_feats", lambda *a, **o: points.append(o["rel_roi_points"]) or own(*a, **o)
    )
    other = copy.deepcopy(model)
    for conv in other.roi_head.mask_head.modules():
        if isinstance(conv, torch.nn.Linear):
            torch.nn.init.normal_(conv.weight)
    with torch.no_grad():
        masks = [trace(each, EXAMPLE)[-1][0] for each in (model, other)]
    assert not torch.allclose(*masks) and len(points) == 4  # two steps in each
    assert torch.equal(points[0], points[2]) and torch.equal(points[1], points[3]) and points[1].std() > 0.1
    compressed, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert compressed.roi_head.point_head.fcs[0].conv.out_channels == 8 and report.pruning.largest_error < 1e-4
    assert detected(compressed, EXAMPLE).masks.shape == (10, 64, 64)
    assert "get_roi_rel_points_test" not in vars(model.roi_head.point_head)


def test_a_part_that_does_not_run_is_left_out():
    model = build(faster_rcnn())

    def broken(x):
        raise RuntimeError("needs proposals")

    model.roi_head.bbox_head.forward = broken
    trace, covered = zoo.trace_of(model, EXAMPLE)
    assert covered == "backbone and neck, rpn_head"
    assert len(trace(model, EXAMPLE)) == 2


def test_flags_come_back():
    model = build(faster_rcnn()).train()
    modes = [module.training for module in model.modules()]
    zoo.trace_of(model, EXAMPLE)
    assert [module.training for module in model.modules()] == modes and not all(modes)


def test_heads_behind_proposals_are_fitted_to_what_the_dense_model_shows_them():
    """On images the heads read their own proposals, which differ in the two models; not the constants of the trace."""
    model = build(faster_rcnn())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    trace, _ = zoo.trace_of(model, image)
    assert trace.calibrated is zoo.with_proposals
    assert zoo.without_heads(trace)[0].calibrated is zoo.with_proposals
    recipe = Recipe.from_dict(
        {
            "decomposition": {"level": "layer", "share": 0.5, "linear": True, "restarts": 1, "sweeps": 20},
            "scope": {"include": ["roi_head", "neck.fpn_convs.1"]},
            "calibration": {"fit": True, "positions": 64},
        }
    )
    images = list(torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(1)).split(3))
    _, report = compress(model, image, recipe, calibration=images, forward_fn=trace)
    found = {layer.name: layer for layer in report.calibration.layers}
    heads = [name for name in found if name.startswith("roi_head.")]
    assert {"roi_head.bbox_head.shared_fcs.0", "roi_head.bbox_head.fc_cls"} <= set(heads)
    assert {found[name].target for name in heads} == {"symmetric"}
    assert (
        found["roi_head.bbox_head.shared_fcs.0"].samples == 21 * 20
    )  # test_cfg.rpn.max_per_img of each image fitted on
    assert found["neck.fpn_convs.1.conv"].target == "output"


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade", "no proposals"])
def test_two_models_are_compared_by_what_their_heads_say(kind):
    """Choices among fixed regions are the same in both: noise in one layer of the RoI head is seen."""
    config = cascade() if kind == "cascade" else faster_rcnn(mask=kind == "mask")
    if kind == "no proposals":
        config["type"] = "FastRCNN"
        config.pop("rpn_head")
        config["train_cfg"].pop("rpn"), config["test_cfg"].pop("rpn")
    dense = build(config).eval()
    trace, _ = zoo.trace_of(dense, EXAMPLE)
    compared = Comparison(dense, [EXAMPLE], trace.distilled)
    assert compared.of(copy.deepcopy(dense)) == 0
    names = {"mask": ["mask_head.conv_logits"], "cascade": ["bbox_head.0.fc_reg", "bbox_head.1.fc_cls"]}
    for name in names.get(kind, ["bbox_head.fc_cls", "bbox_head.fc_reg"]):
        noisy = copy.deepcopy(dense)
        torch.nn.init.normal_(noisy.get_submodule(f"roi_head.{name}").weight)
        assert compared.of(noisy) > 0.01, name


@pytest.mark.parametrize("regions", [16, 8])
def test_a_number_of_regions_that_equals_a_width_is_not_taken_for_it(regions):
    config = faster_rcnn()
    config["test_cfg"]["rpn"]["max_per_img"] = regions
    model, images = build(config).eval(), torch.randn(16 // regions, 3, 64, 64)
    trace, _ = zoo.trace_of(model, images)
    compressed, report = compress(model, images, RECIPE, forward_fn=trace)
    assert not [s for s in report.pruning.skipped if s.name.startswith("neck")]
    assert zoo.features(compressed, EXAMPLE)[0].shape[1] == 8
    sizes = [[len(t) for t in trace.distilled(each, images)[1][0]] for each in (model, compressed)]
    assert sizes[0] == sizes[1] == [33 * len(images)] * 2


def test_levels_that_no_region_is_pooled_from_keep_the_pyramid(caplog):
    """Mask heads that read levels which the box heads do not: a trace would take them for read by nothing."""
    config = faster_rcnn(mask=True)
    config["roi_head"]["bbox_roi_extractor"]["featmap_strides"] = [4]
    caplog.set_level("INFO", "norton_plugin.zoo.detector_parts")
    _, covered = zoo.trace_of(build(config), EXAMPLE)
    assert covered == "backbone and neck, rpn_head, roi_head.bbox_head, roi_head.mask_head"
    assert "the pyramid keeps its width: roi_head.mask_roi_extractor.roi_layers.1 does not run" in caplog.text


def test_boxes_that_each_class_has_are_outputs_of_every_stage():
    config = cascade()
    for head in config["roi_head"]["bbox_head"]:
        head["reg_class_agnostic"] = False
    model = build(config)
    trace, _ = zoo.trace_of(model, EXAMPLE)
    _, report = compress(model, EXAMPLE, RECIPE, forward_fn=trace)
    assert report.status == "full"
    assert "not-consumed" not in {s.code for s in report.pruning.skipped}


def test_what_heads_say_of_the_same_regions_is_learned(tmp_path):
    """The two models propose other regions: heads are compared on fixed ones, with the RPN."""
    path = tmp_path / "detector.py"
    path.write_text(f"model = {faster_rcnn()!r}\n")
    source = load_source(f"mmdet:{path}", input_size=64)
    images = [(x,) for x in torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)).split(2)]
    (scores, boxes), [(classes, shifts), refining] = source.forward_fn.distilled(source.model, images[0])
    assert len(scores) == len(boxes) == 5 and refining == []
    assert len(classes) == len(shifts) == 2 * 33  # two images
    assert len(source.forward_fn.calibrated(source.model, images[0])) == 3
    recipe = Recipe.from_dict(
        {"decomposition": {"rank": 1}, "distillation": {"passes": 2}, "scope": {"exclude": ["*_fcs*"]}}
    )
    model, report = compress(
        source.model, source.example_inputs, recipe, calibration=images, forward_fn=source.forward_fn
    )
    found = report.distillation
    assert found.kept == "after" and found.divergence["after"] < found.divergence["before"]
    assert "backbone.layer4.1" in found.blocks and "neck.lateral_convs.0" in found.blocks
    heads = dict(source.model.roi_head.named_parameters())
    changed = [name for name, p in model.roi_head.named_parameters() if not torch.equal(p, heads[name])]
    assert "bbox_head.fc_cls.weight" in changed
