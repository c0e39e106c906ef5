"""How many output positions of an image a layer is read at.

Most positions of a detector's maps show background: with few of them the fit hardly sees small objects. Products of
narrow patches cost little, so layers that read few numbers can be read at many positions.
"""

from __future__ import annotations

_LEAST = 32
# Patches of a layer in all, where there are few images.
_PATCHES = 256 * 32
# Multiply-accumulates that the products of a layer's patches may cost: some seconds on one core.
_PRODUCTS = 2 * 10**11


def positions_of(setting: int | str, *, images: int, inputs: int | None = None) -> int:
    """Return how many positions of an image are read.

    Args:
        setting: A number, or ``"auto"``: 32, more where there are few images, and more where a layer reads few numbers.
        images: That are read in all.
        inputs: D, the numbers that one output of the layer reads; None where it is not known yet.
    """
    if isinstance(setting, int):
        return setting
    cheap = 0 if inputs is None else _PRODUCTS // (inputs**2 * images)
    return max(_LEAST, -(-_PATCHES // images), cheap)
