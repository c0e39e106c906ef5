"""CIFAR-10 (JPEG) and the public ResNet-20/56 weights, as the CIFAR benchmarks share them."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch

from norton_plugin.mm import PackedImages, pack_folder
from norton_plugin.mm.classification.packed import cache_folder
from norton_plugin.zoo import ModelSource, load_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every CIFAR benchmark takes."""
    parser.add_argument("--images", type=Path, default=cache_folder() / "cifar10_jpeg", help="folder of train/, test/")
    parser.add_argument("--weights", type=Path, required=True, help="folder of cifar10_resnet{20,56}.safetensors")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for the JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")


def load_images(folder: Path, split: str) -> PackedImages:
    """``train`` (50,000) or ``test`` (10,000)."""
    return pack_folder(folder / split)


def load_resnet(name: str, weights: Path) -> ModelSource:
    """``resnet20`` or ``resnet56`` with the public weights."""
    return load_source(f"cifar:{name}", checkpoint=weights / f"cifar10_{name}.safetensors")


def batches(data: PackedImages, source: ModelSource, *, size: int = 256) -> list[torch.Tensor]:
    """Normalised images in batches (B, 3, 32, 32), without augmentation."""
    mean = torch.tensor(source.mean).view(1, -1, 1, 1)
    std = torch.tensor(source.std).view(1, -1, 1, 1)
    images = data.images
    return [(images[i : i + size].float() / 255 - mean) / std for i in range(0, len(images), size)]


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {"cpu": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
