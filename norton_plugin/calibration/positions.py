"""How many output positions of an image a layer is read at.

Most positions of a detector's maps show background: with few of them the fit hardly sees small objects. Products of
narrow patches cost little, so layers that read few numbers can be read at many positions.
"""

from __future__ import annotations

from torch import Tensor

from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.errors import RecipeError

_LEAST = 32
# Patches of a layer in all, where there are few images.
_PATCHES = 256 * 32
# Multiply-accumulates that the products of a layer's patches may cost: some seconds on one core.
_PRODUCTS = 2 * 10**11


def positions_of(setting: int | str, *, images: int) -> int:
    """Return how many positions of an image are read, whatever the layer.

    Args:
        setting: A number, or ``"auto"``: 32, more where there are few images.
        images: That are read in all.

    Raises:
        RecipeError: The setting is neither.
    """
    if isinstance(setting, int):
        return setting
    if setting != "auto":
        raise RecipeError(f"positions is {setting!r}; expected a number, or 'auto'")
    return max(_LEAST, -(-_PATCHES // max(1, images)))


def positions_of_layer(
    setting: int | str, weight: Tensor, *, groups: int, images: int, memory: MomentMemory | None = None
) -> int:
    """Return how many positions of an image a layer is read at.

    Args:
        setting: A number, or ``"auto"``: as of `positions_of`, more where the layer reads few numbers, and no more than
            the memory takes of one image.
        weight: (N, D), what each output reads.
        groups: Of the layer.
        images: That are read in all.
        memory: Bounds the patches.

    Raises:
        RecipeError: The setting is neither.
    """
    least = positions_of(setting, images=images)
    if isinstance(setting, int):
        return setting
    outputs, inputs = weight.shape
    cheap = _PRODUCTS // ((groups * inputs + outputs) * inputs * max(1, images))
    most = (memory or MomentMemory()).positions_at_once(patch=groups * inputs, target=outputs)
    return min(max(least, cheap), most)
