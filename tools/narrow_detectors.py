"""Detectors and a segmentation network of torchvision on a small backbone and a narrow pyramid, for quick sweeps."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

_CLASSES = 5
# Outputs of these blocks of MobileNetV3-Small, at strides 8, 16 and 32, and their channels.
_TAPS, _WIDTHS, _WIDTH = {"3": "0", "8": "1", "11": "2"}, [24, 48, 96], 32
_SIZES: dict[str, Any] = {"min_size": 96, "max_size": 96}


def _backbone() -> nn.Module:
    return BackboneWithFPN(models.mobilenet_v3_small().features, _TAPS, _WIDTHS, _WIDTH)


def _anchors(ratios: int) -> AnchorGenerator:
    return AnchorGenerator(((16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0)[:ratios],) * 4)


def retinanet() -> nn.Module:
    """Return a RetinaNet."""
    return RetinaNet(_backbone(), _CLASSES, anchor_generator=_anchors(3), **_SIZES)


def fcos() -> nn.Module:
    """Return an FCOS."""
    return FCOS(_backbone(), _CLASSES, anchor_generator=_anchors(1), **_SIZES)


def faster_rcnn() -> nn.Module:
    """Return a Faster R-CNN."""
    heads = {"box_head": TwoMLPHead(_WIDTH * 7 * 7, 64), "box_predictor": FastRCNNPredictor(64, _CLASSES)}
    return FasterRCNN(_backbone(), rpn_anchor_generator=_anchors(3), **heads, **_SIZES)


def deeplab() -> nn.Module:
    """Return a DeepLabV3 on MobileNetV3-Large, its classifier narrow."""
    network = models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    network.classifier = nn.Sequential(
        nn.Conv2d(960, _WIDTH, 1, bias=False), nn.BatchNorm2d(_WIDTH), nn.ReLU(), nn.Conv2d(_WIDTH, _CLASSES, 1)
    )
    return network
