"""How strongly a layer is held to its dense weight: as images that it was not fitted to say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.calibration.moments import LayerMoments
from norton_plugin.cpd import OutputMetric

# Ridge towards the dense weight, as a share of the mean second moment of the inputs (docs/method.md, section 3).
RIDGE = 1e-3
# With fewer samples than this for each number that an output sees, the ridge grows in proportion.
ENOUGH = 10
# What it is multiplied by where that lowers the error on other images.
_STRONGER = (10.0, 100.0, 1000.0)
# Share by which an error has to fall for a stronger ridge; less is chance.
_LEAST_GAIN = 0.01
# Outputs that are fitted for the choice: they share their inputs, so more of them say little more.
_OUTPUTS = 64


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
    chosen = _some_outputs(len(weight), groups=len(moments.metric.second))
    first, second = (half.metric.of_outputs(chosen) for half in halves)
    pairs = [(_for_fitting(own), other) for own, other in ((first, second), (second, first))]
    candidates = (share, *(share * stronger for stronger in _STRONGER))
    errors = {candidate: _error_of_others(weight[chosen], pairs, candidate) for candidate in candidates}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < errors[share] * (1 - _LEAST_GAIN) else share


def _some_outputs(count: int, *, groups: int) -> Tensor:
    """Return evenly spaced outputs, as many of each group, sorted, int64."""
    size = count // groups
    own = torch.linspace(0, size - 1, min(size, max(1, _OUTPUTS // groups))).round().long()
    return (torch.arange(groups)[:, None] * size + own).flatten()


def _for_fitting(metric: OutputMetric) -> OutputMetric:
    return metric.to(metric.fitting_precision)


def _error_of_others(weight: Tensor, pairs: Sequence[tuple[OutputMetric, OutputMetric]], share: float) -> float:
    """Return the error on each half of the weight that is fitted to the other half, given both in that order."""
    found = 0.0
    for own, other in pairs:
        fitted = own.towards(weight.to(own.second), share).best_weight()
        found += float(other.errors(fitted.to(weight)).sum())
    return found
