"""One layer, fitted to moments of what it sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.calibration.layers import FittedLayer
from norton_plugin.calibration.moments import LayerMoments
from norton_plugin.cpd import CoupledFactors, OutputMetric, SpatialFactors, fit_spatial_under, fit_under

# Scales of channels below this share of the largest count as this share: their rows are divided by them again.
_LEAST_SCALE = 1e-2


@dataclass(frozen=True)
class LayerFit:
    """What fitting did to a layer.

    Attributes:
        name: First dotted name.
        decomposed: Whether it is a block of factors.
        target: "stream" where its target repairs the stream that its output is added to, "output" where it is the
            output of the dense layer, "symmetric" where the inputs are those of the dense model too.
        note: Why the target is not "stream", or the inputs are the dense model's; empty where there is nothing to say.
        inputs: D, numbers that one output sees.
        samples: Patches that were read.
        nmse_before: Error of its outputs over the variance of their targets, before.
        nmse_after: The same afterwards.
    """

    name: str
    decomposed: bool
    target: str
    note: str
    inputs: int
    samples: int
    nmse_before: float
    nmse_after: float


def fit_layer_(
    layer: FittedLayer, moments: LayerMoments, *, ridge: float, scale: Tensor | None, norm: nn.Module | None
) -> tuple[float, float]:
    """Fit a layer, in place.

    Args:
        layer: Changed: its factors or its weight, and its bias.
        moments: Centred where ``takes_bias``.
        ridge: How strongly it is held to the dense weight (`ridge.ridge_of`).
        scale: What each output channel is multiplied by before it counts, (N,); None for ones.
        norm: The BatchNorm that reads the outputs, whose mean takes up the bias where the layer has none.

    Returns:
        Error over the variance of the targets, before and after.
    """
    weight = layer.weight.to(moments.metric.second.device)
    before = moments.metric.nmse(_own_weight(layer.own))
    metric = moments.metric.towards(weight, ridge)
    rows = torch.ones_like(weight[:, 0]) if scale is None else _bounded(scale.to(weight))
    _set_weight(layer.own, metric, rows)
    found = _own_weight(layer.own)
    if takes_bias(layer.own, norm):
        _set_bias(layer.own, norm, moments.bias(found))
    return before, moments.metric.nmse(found)


def takes_bias(own: nn.Module, norm: nn.Module | None) -> bool:
    """Tell whether outputs can be shifted: by a bias, or by the mean of the norm behind."""
    return getattr(own, "bias", None) is not None or getattr(norm, "running_mean", None) is not None


def _bounded(scale: Tensor) -> Tensor:
    size = scale.abs()
    return size.clamp_min(float(size.max()) * _LEAST_SCALE).clamp_min(torch.finfo(torch.float32).tiny)


def _own_weight(own: nn.Module) -> Tensor:
    """Return the weight (N, D), float64."""
    if isinstance(own, CPDBlock | SpatialSVDBlock):
        return own.factors.to(dtype=torch.float64).reconstruct().flatten(1).detach()
    return own.weight.detach().double().flatten(1)  # type: ignore[operator]


def _set_weight(own: nn.Module, metric: OutputMetric, scale: Tensor) -> None:
    if isinstance(own, CPDLinear):
        ones = torch.ones(1, own.components, 1, dtype=torch.float64, device=own.head.device)
        cluster = torch.zeros(own.out_features, dtype=torch.long, device=own.head.device)
        found = _fitted(CoupledFactors(own.head.detach()[None], ones, ones, own.mix.detach(), cluster), metric, scale)
        own.set_factors(found.head[0], found.mix)
    elif isinstance(own, SpatialSVDBlock):
        vertical, horizontal = (factor.detach().double() for factor in own.factors)
        weighted = SpatialFactors(vertical, horizontal * scale[:, None, None])
        fitted = fit_spatial_under(weighted, metric.weighted(scale))
        own.set_factors(fitted._replace(horizontal=fitted.horizontal / scale[:, None, None]))
    elif isinstance(own, CPDBlock):
        factors = own.factors
        detached = type(factors)(*(factor.detach() for factor in factors))
        if isinstance(detached, CoupledFactors):
            own.set_factors(_fitted(detached, metric, scale))
        else:
            own.set_factors(fit_under(detached, metric))  # filters on their own: their scale changes nothing
    else:
        target: Tensor = own.weight  # type: ignore[assignment]
        with torch.no_grad():
            target.copy_(metric.best_weight().view_as(target))


def _fitted(factors: CoupledFactors, metric: OutputMetric, scale: Tensor) -> CoupledFactors:
    """Fit shared components; outputs that are multiplied by more count more."""
    factors = factors.to(dtype=torch.float64)
    scaled = factors._replace(mix=factors.mix * scale[:, None])
    found = fit_under(scaled, metric.weighted(scale))
    return found._replace(mix=found.mix / scale[:, None]).balanced()


def _set_bias(own: nn.Module, norm: nn.Module | None, bias: Tensor) -> None:
    own_bias = getattr(own, "bias", None)
    with torch.no_grad():
        if own_bias is not None:
            own_bias.copy_(bias)
        elif norm is not None:
            mean: Tensor = norm.running_mean  # type: ignore[assignment]
            mean.sub_(bias.to(mean))
