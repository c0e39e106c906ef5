"""Weights that say which version of its layers each was stored by, as PyTorch's own state dicts do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def with_versions(tensors: Mapping[str, Tensor], model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return weights as a state dict that ``model`` reads as one of its own version.

    Layers that were changed over the years, such as torchvision's MNASNet, refuse weights without a version, or take
    them for the oldest. Where the weights carry versions these stay.

    Args:
        tensors: By the names of its state dict.
        model: Whose layers say their version where the weights say none.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(tensors, "_metadata", None) or model.state_dict()._metadata  # type: ignore[attr-defined]
    return state
