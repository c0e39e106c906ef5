"""The layer that takes a Linear layer's place: components that all of its outputs share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks.arguments import check_flag, check_placement, check_size, whole_number
from norton_plugin.blocks.clusters import BlockLevel
from norton_plugin.blocks.derived import assigned_
from norton_plugin.blocks.scripting import NotScripted
from norton_plugin.blocks.selection import select_linear_
from norton_plugin.errors import SurgeryError


class CPDLinear(NotScripted):
    """A Linear layer whose outputs mix M components of the input: what a CPDBlock of one cluster is for a convolution.

    There are no spatial factors, so the decomposition is a truncated SVD. ``weight`` gives the rebuilt dense weight
    for code that reads it.

    Args:
        in_features: C, length of the input's last dimension.
        out_features: N, length of the output's last dimension.
        components: M, at least 1.
        bias: Whether a bias is added.
        device: Device of the factors.
        dtype: Data type of the factors.

    Raises:
        SurgeryError: An argument is of a wrong type or out of range; nothing is allocated then.

    Shape:
        Input (..., C), output (..., N). Parameters ``head`` (M, C), ``mix`` (N, M), ``bias`` (N,) or None.
    """

    # mmengine's BaseModule.init_weights asks children for this; the factors must survive it.
    is_init = True
    # All outputs share all components; see ``CPDBlock.level``.
    level: BlockLevel = "layer"
    # Name of the factor whose rows are of one output each.
    filter_factor = "mix"

    head: nn.Parameter
    mix: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        components: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = whole_number(in_features, "in_features")
        self.out_features = whole_number(out_features, "out_features")
        self.components = whole_number(components, "components")
        check_flag(bias, "bias")
        check_size(filters=out_features, channels=in_features, kernel_size=(1, 1), rank=components, clusters=1)
        check_placement(device, dtype)
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.head = nn.Parameter(torch.empty(components, in_features, **kind))
        self.mix = nn.Parameter(torch.empty(out_features, components, **kind))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, **kind)) if bias else None)
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if not assigned_(self, name, value):
            super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draw factors whose product has the variance of ``nn.Linear``'s default initialisation."""
        scale = (3.0 * self.in_features * self.components) ** -0.25
        nn.init.normal_(self.head, std=scale)
        nn.init.normal_(self.mix, std=scale)
        if self.bias is not None:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def init_weights(self) -> None:
        """Do nothing: mmengine calls it on every module, and decomposed weights must survive it."""

    @property
    def weight(self) -> Tensor:
        """The dense weight (N, C) rebuilt from the factors; assign to the factors, not to it."""
        return self.mix @ self.head

    def set_factors(self, head: Tensor, mix: Tensor, bias: Tensor | None = None) -> None:
        """Copy factors (and the bias, if given) into the parameters, cast to their dtype and device.

        Raises:
            SurgeryError: A shape differs from the layer's.
        """
        pairs = [("head", head), ("mix", mix), *([] if bias is None else [("bias", bias)])]
        for name, value in pairs:
            own = getattr(self, name)
            if own is None or own.shape != value.shape:
                raise SurgeryError(
                    f"{name} has shape {tuple(value.shape)}, the layer expects "
                    f"{None if own is None else tuple(own.shape)}"
                )
        with torch.no_grad():
            for name, value in pairs:
                getattr(self, name).copy_(value)

    def select_(self, keep: Tensor | Sequence[int], axis: str) -> None:
        """Keep some outputs, inputs or components, in place; parameters become new objects.

        Components that no output uses any more go with the outputs.

        Args:
            keep: Indices to keep, ascending.
            axis: As of a CPDBlock: ``"filters"`` (outputs), ``"channels"`` (inputs) or ``"components"``.

        Raises:
            SurgeryError: An unknown axis, no index, or one out of range.
        """
        select_linear_(self, keep, axis)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(F.linear(x, self.head), self.mix, self.bias)

    def extra_repr(self) -> str:
        """Return the arguments that rebuild the layer."""
        text = f"{self.in_features}, {self.out_features}, components={self.components}"
        return text if self.bias is not None else f"{text}, bias=False"
