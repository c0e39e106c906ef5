"""What a Runner's model is traced with: an example image and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor, nn

from norton_plugin.errors import RecipeError
from norton_plugin.mm.classification.datasets import first_item
from norton_plugin.modules.random_state import preserved_random_state

Trace = Callable[[nn.Module, Any], Any]
_MULTIPLE = 32


def traces_of(model: nn.Module, example: Tensor) -> list[tuple[Trace, str]]:
    """Functions that run the model on the example, and what they cover in words; the first that can be traced counts.

    Detectors of mmdet are run part by part (``zoo/detector_parts.py``); any other model by its mode ``tensor``.

    Args:
        model: Unwrapped.
        example: (1, C, H, W).
    """
    if any(base.__module__.startswith("mmdet.") for base in type(model).__mro__):
        from norton_plugin.zoo import detector_parts

        if detector_parts.is_detector(model):
            first = detector_parts.trace_of(model, example)
            return [first, detector_parts.without_heads(first[0])]
    return [(_run_tensor_mode, "the whole model")]


def _run_tensor_mode(model: nn.Module, example: Tensor) -> Any:
    return model(example, mode="tensor")


def example_image(runner: Runner, model: nn.Module, input_size: Sequence[int] | None) -> Tensor:
    """Return a random image of the size the model is trained on.

    Args:
        runner: Its training data set tells the size where ``input_size`` does not.
        model: Unwrapped; gives device and dtype.
        input_size: (H, W), or None.

    Returns:
        (1, C, H, W) with standard normal values, H and W rounded up to a multiple of 32 where they were looked up.

    Raises:
        RecipeError: The size cannot be found.
    """
    if input_size is None:
        channels, height, width = _sample_shape(runner)
        # mmdet pads batches to a multiple of 32; small images of classifiers are left as they are.
        height, width = (_round_up(height), _round_up(width)) if min(height, width) > _MULTIPLE else (height, width)
    else:
        channels, (height, width) = _input_channels(model), input_size
    like = next(p for p in model.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, height, width, generator=generator).to(like)


def _round_up(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE


def _input_channels(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def _sample_shape(runner: Runner) -> tuple[int, int, int]:
    with preserved_random_state():
        try:
            sample = first_item(runner.train_dataloader.dataset)
        except Exception as error:
            raise RecipeError(
                f"the first training image cannot be read ({type(error).__name__}: {error}); "
                "fix the data, or give NortonHook input_size=(height, width)"
            ) from error
    image = sample.get("inputs") if isinstance(sample, Mapping) else None
    image = image[0] if isinstance(image, list | tuple) and image else image
    if not isinstance(image, Tensor) or image.dim() != 3:
        raise RecipeError(
            "the training data do not say how large images are (no 'inputs' of shape (C, H, W)); "
            "give NortonHook input_size=(height, width)"
        )
    channels, height, width = image.shape
    return channels, height, width
