"""From a batch of the data loader to normalised tensors on the model's device."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from norton_plugin.errors import RecipeError
from norton_plugin.mm.classification.augment import crop_and_flip


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """Scale, augment (in training) and normalise a batch of images.

    Args:
        mean: Per-channel mean of images scaled to [0, 1].
        std: Per-channel standard deviation of images scaled to [0, 1], above 0.
        crop_padding: In training, pixels of zero padding for a random crop; 0 for none.
        flip: In training, mirror half of the images.
        channels_last: Hand images on in ``torch.channels_last`` memory format.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        *,
        crop_padding: int = 0,
        flip: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0.0) <= 0:
            raise RecipeError(f"mean {tuple(mean)} and std {tuple(std)} do not fit: equal length, std above 0")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.crop_padding = crop_padding
        self.flip = flip
        self.channels_last = channels_last

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepare one batch.

        Args:
            data: ``inputs``, (B, C, H, W) or a list of (C, H, W), uint8 in [0, 255] or floating point in [0, 1];
                and optionally ``data_samples``, the labels, (B,) or a list of integers.
            training: Whether to augment.

        Returns:
            ``inputs`` (B, C, H, W), floating point, and ``data_samples`` int64 (B,) or ``None``.
        """
        inputs, labels = data["inputs"], data.get("data_samples")
        images: Tensor = inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))
        images = images.to(self.device, non_blocking=True)
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.long).to(self.device, non_blocking=True)
        if training and (self.crop_padding or self.flip):
            images = crop_and_flip(images, padding=self.crop_padding, flip=self.flip)
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        images = (images.to(self.mean.dtype) / scale - self.mean) / self.std
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return {"inputs": images, "data_samples": labels}
