"""Small detection transformers, from mmdet's own configurations: a thin backbone, two layers, ten queries."""

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from torch import nn

CONFIGS = {
    "detr": "detr/detr_r18_8xb2-500e_coco.py",
    "conditional": "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "dab": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "deformable": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "dino": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "ddq": "ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
}
_FEWER = {"num_queries": 10, "feedforward_channels": 48, "num_layers": 2}


def _smaller(config) -> None:
    for key, value in list(config.items()):
        if isinstance(value, dict):
            _smaller(value)
        elif key in _FEWER and isinstance(value, int):
            config[key] = _FEWER[key]


def transformer(kind: str) -> nn.Module:
    """Build one in evaluation mode, its weights from seed 0."""
    config: Config = get_config(f"mmdet::{CONFIGS[kind]}")
    model = ConfigDict(config.model)
    _smaller(model)
    levels = len(model.backbone.out_indices)
    model.backbone = ConfigDict(
        type="ResNet", depth=18, base_channels=8, out_indices=tuple(range(4 - levels, 4)), init_cfg=None
    )
    model.neck.in_channels = [8 * 2**level for level in range(4 - levels, 4)]
    model.bbox_head.num_classes = 3
    torch.manual_seed(0)
    net = MODELS.build(model).eval()
    if hasattr(net, "level_embed"):
        torch.nn.init.normal_(net.level_embed)  # mmdet leaves it as it lies in memory until a run begins
    for parameter in net.parameters():  # what starts as a constant would hide mistakes
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return net
