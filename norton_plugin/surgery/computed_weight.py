"""Layers whose weight is computed anew before every call: by a parametrization, or by a hook of the older kind."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from norton_plugin.reasons import Cause, Reason

# Hooks of torch.nn.utils, and the functions that take them away again and leave a plain weight.
_HOOKS = {WeightNorm: ("weight_norm", "remove_weight_norm"), SpectralNorm: ("spectral_norm", "remove_spectral_norm")}


def why_computed(module: nn.Module) -> Cause | None:
    """Return what computes a layer's weight and how to end that; None where the weight is the layer's own.

    Args:
        module: Any module.
    """
    for hook in module._forward_pre_hooks.values():
        for kind, (name, remedy) in _HOOKS.items():
            if isinstance(hook, kind):
                what = f"a hook of torch.nn.utils.{name}"
                return Reason.PARAMETRIZED.because(what=what, remedy=f"torch.nn.utils.{remedy}")
    if nn.utils.parametrize.is_parametrized(module):
        remedy = "torch.nn.utils.parametrize.remove_parametrizations"
        return Reason.PARAMETRIZED.because(what="a parametrization", remedy=remedy)
    return None
