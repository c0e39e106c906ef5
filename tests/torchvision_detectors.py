"""Small detectors of torchvision whose random weights find objects of clearly different scores."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import faster_rcnn, keypoint_rcnn, mask_rcnn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

SIDE = 64
_GAINS = {"cls_logits.weight": 1.0, "cls_score.weight": 2.0, "classification_head.conv": 1.4, "fc6.weight": 2.0}


class Pyramid(nn.Module):
    """Two levels of 32 channels, at a quarter and an eighth of the image's size."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, 4, 2), nn.BatchNorm2d(32), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.second = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32))

    def forward(self, x):
        """Map (B, 3, H, W) to levels by name."""
        first = self.first(self.stem(x))
        return OrderedDict([("0", first), ("1", self.second(first))])


def detector(kind="mask"):
    """A detector: "faster", "mask", "keypoint", "retina" or "fcos"."""
    torch.manual_seed(0)
    sizes = {"min_size": SIDE, "max_size": SIDE}
    # Up to 1000 boxes torchvision itself suppresses those of all classes at once.
    few = {"topk_candidates": 100, "detections_per_img": 30}
    ratios = ((0.5, 1.0, 2.0),) * 2
    if kind == "retina":
        anchors = AnchorGenerator(((16,), (32,)), ratios)
        model = detection.RetinaNet(Pyramid(), 4, anchor_generator=anchors, score_thresh=0.005, **few, **sizes)
    elif kind == "fcos":
        anchors = AnchorGenerator(((4,), (8,)), ((1.0,),) * 2)
        model = detection.FCOS(Pyramid(), 4, anchor_generator=anchors, score_thresh=0.05, **few, **sizes)
    else:
        model = _two_stages(kind, AnchorGenerator(((16,), (32,)), ratios), sizes)
    # Fresh weights are so small that all scores are nearly the same.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        gain = next((gain for key, gain in _GAINS.items() if key in name), None)
        if gain is not None:
            with torch.no_grad():
                fresh = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(gain * fresh / parameter[0].numel() ** 0.5)
    return model.eval()


def _two_stages(kind, anchors, sizes):
    classes = {"faster": detection.FasterRCNN, "mask": detection.MaskRCNN, "keypoint": detection.KeypointRCNN}
    pools = {
        "box_roi_pool": MultiScaleRoIAlign(["0", "1"], 7, 2),
        "box_head": faster_rcnn.TwoMLPHead(32 * 7 * 7, 64),
        "box_predictor": faster_rcnn.FastRCNNPredictor(64, 4),
    }
    if kind == "mask":
        pools["mask_roi_pool"] = MultiScaleRoIAlign(["0", "1"], 14, 2)
        pools["mask_head"] = mask_rcnn.MaskRCNNHeads(32, (32, 32), 1)
        pools["mask_predictor"] = mask_rcnn.MaskRCNNPredictor(32, 16, 4)
    if kind == "keypoint":
        pools["keypoint_roi_pool"] = MultiScaleRoIAlign(["0", "1"], 14, 2)
        pools["keypoint_head"] = keypoint_rcnn.KeypointRCNNHeads(32, (32, 32))
        pools["keypoint_predictor"] = keypoint_rcnn.KeypointRCNNPredictor(32, 3)
    return classes[kind](
        Pyramid(),
        rpn_anchor_generator=anchors,
        rpn_post_nms_top_n_test=40,
        box_detections_per_img=20,
        box_score_thresh=0.2,
        **pools,
        **sizes,
    )


def image(seed=0, count=1):
    """Images (count, 3, SIDE, SIDE) in [0, 1]."""
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
