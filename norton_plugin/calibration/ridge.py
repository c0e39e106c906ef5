"""How strongly a layer is held to its dense weight: as images that it was not fitted to say."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from norton_plugin.calibration.moments import LayerMoments

# Ridge towards the dense weight, as a share of the mean second moment of the inputs (docs/method.md, section 3).
RIDGE = 1e-3
# With fewer samples than this for each number that an output sees, the ridge grows in proportion.
ENOUGH = 10
# What it is multiplied by where that lowers the error on other images.
_STRONGER = (10.0, 100.0, 1000.0)
# Share by which an error has to fall for a stronger ridge; less is chance.
_LEAST_GAIN = 0.01


def ridge_of(weight: Tensor, moments: LayerMoments, halves: Sequence[LayerMoments]) -> float:
    """Return the ridge of a layer, as a share of the mean second moment of its inputs.

    Samples of one image are alike, so their number alone does not tell how far they can be trusted. The layer is fitted
    to each half of the images and tested on the other, with several ridges.

    Args:
        weight: Of the dense layer, (N, D).
        moments: Of all images.
        halves: Of two halves of them; fewer where there are too few batches, and nothing is tested.
    """
    share = RIDGE * max(1.0, ENOUGH * weight.shape[1] / moments.samples)
    if len(halves) != 2:
        return share
    errors = {share: _error_of_others(weight, halves, share) for share in (share, *(share * x for x in _STRONGER))}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < errors[share] * (1 - _LEAST_GAIN) else share


def _error_of_others(weight: Tensor, halves: Sequence[LayerMoments], share: float) -> float:
    """Return the error on each half of the weight that is fitted to the other half."""
    pairs = (halves, halves[::-1])
    return sum(float(b.metric.errors(a.metric.towards(weight, share).best_weight()).sum()) for a, b in pairs)
