"""Compress the model of a ``YOLO`` object, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.errors import SurgeryError
from norton_plugin.pipeline import CompressionReport, compress
from norton_plugin.recipe import Recipe
from norton_plugin.yolo.passes import every_prediction
from norton_plugin.yolo.record import attach_, install


def compress_yolo_(
    yolo: Any,
    recipe: Recipe,
    *,
    image_size: int = 640,
    calibration: Iterable[Tensor] | None = None,
    on_step: Callable[[str], None] | None = None,
) -> CompressionReport:
    """Compress the model of a ``YOLO`` object; its methods (train, val, predict, export ...) work on it from then on.

    Args:
        yolo: An ``ultralytics.YOLO``, from a checkpoint (``.pt``) or a YAML file, before ``fuse`` or ``predict``.
        recipe: What to do.
        image_size: Side of the square image that the model is run on, in pixels; a multiple of its largest stride.
        calibration: Unlabelled batches (B, 3, H, W), values in [0, 1], as of ``compress``.
        on_step: Told the name of each step as it begins.

    Returns:
        What was done, and what was left with its reason.

    Raises:
        SurgeryError: ``yolo`` holds no module, or one that was fused for inference; what ``compress`` raises.
        RecipeError: As of ``compress``.
    """
    model = getattr(yolo, "model", None)
    if not isinstance(model, nn.Module):
        raise SurgeryError(
            f"expected a YOLO object of Ultralytics that holds a PyTorch model, got {type(yolo).__name__} with "
            f"{type(model).__name__}; load a .pt or .yaml file: YOLO('yolo11n.pt')"
        )
    is_fused = getattr(model, "is_fused", None)
    if is_fused is not None and is_fused():
        raise SurgeryError(
            "the model was fused for inference (predict, val and export of Ultralytics do that to the model they run), "
            "and cannot be trained any more; load the checkpoint anew, and compress it first"
        )
    channels = getattr(model, "yaml", {}).get("channels", 3)
    example = torch.zeros(1, channels, image_size, image_size, device=next(model.parameters()).device)
    result = compress(model, example, recipe, calibration=calibration, forward_fn=every_prediction, on_step=on_step)
    install()
    attach_(result.model, result.report.structure)
    yolo.model, yolo.predictor = result.model, None
    # With an empty `ckpt`, YOLO.train would build the dense model of the YAML file in place of this one.
    yolo.ckpt = {**(yolo.ckpt or {}), "model": result.model, "ema": None}
    return result.report
