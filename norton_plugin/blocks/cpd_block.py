"""The layer that takes a convolution's place: it owns the factors of every filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks.arguments import (
    check_channels,
    check_flag,
    check_placement,
    check_size,
    choice,
    pair,
    whole_number,
)
from norton_plugin.blocks.forms import FORM_FUNCTIONS, FORMS, BlockFactors, ConvGeometry, Form
from norton_plugin.blocks.padding import PaddingRule, normalise_padding, pad, sides
from norton_plugin.cpd import CPDFactors
from norton_plugin.errors import SurgeryError

AXES = ("filters", "channels")


class CPDBlock(nn.Module):
    """A 2-D convolution whose filters are sums of R outer products (NORTON, section III-B).

    The whole contract of ``nn.Conv2d`` is kept: geometry, padding mode, groups, bias, device, dtype. ``weight`` gives
    the rebuilt dense weight for code that reads it. Pruning is an index select on one axis of the factors.

    Args:
        in_channels: Channels of the input.
        out_channels: N, number of filters.
        kernel_size: (Kh, Kw) or one number for both.
        rank: R, components per filter, at least 1.
        stride: Pixels, one or (vertical, horizontal).
        padding: Pixels, ``"same"``, ``"valid"`` or ``"dynamic_same"`` (see ``blocks.padding``).
        dilation: Pixels, one or (vertical, horizontal).
        groups: Groups of channels; each filter sees C = ``in_channels / groups`` of them.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        form: Which of the equivalent forms runs in evaluation mode.
        training_form: Which one runs in training mode; ``"dense"`` needs the least activation memory.
        device: Device of the factors.
        dtype: Data type of the factors.

    Raises:
        SurgeryError: An argument is of a wrong type or out of range, or the block would take gigabytes; nothing is
            allocated then.

    Shape:
        Input (B, in_channels, H, W), output (B, out_channels, Ho, Wo) as of ``nn.Conv2d``.
        Parameters ``head`` (N, R, C), ``vertical`` (N, R, Kh), ``horizontal`` (N, R, Kw), ``bias`` (N,) or None.
    """

    # Read by code that expects a convolution; a block is never transposed.
    transposed = False
    output_padding = (0, 0)
    # mmengine's BaseModule.init_weights asks children for this; the factors must survive it.
    is_init = True

    head: nn.Parameter
    vertical: nn.Parameter
    horizontal: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        rank: int,
        *,
        stride: int | Sequence[int] = 1,
        padding: PaddingRule | int | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        form: Form = "separable",
        training_form: Form = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = whole_number(in_channels, "in_channels")
        self.out_channels = whole_number(out_channels, "out_channels")
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.rank = whole_number(rank, "rank")
        self.stride = pair(stride, "stride")
        self.dilation = pair(dilation, "dilation")
        self.groups = whole_number(groups, "groups")
        self.padding = normalise_padding(padding, padding_mode)
        self.padding_mode = padding_mode
        if self.padding == "same" and self.stride != (1, 1):
            raise SurgeryError(f"padding 'same' needs stride 1, got {self.stride}; use 'dynamic_same' or pixels")
        self.form = form
        self.training_form = training_form
        check_flag(bias, "bias")
        check_channels(self.in_channels, self.out_channels, self.groups)
        n, r, c = self.out_channels, self.rank, self.in_channels // self.groups
        check_size(filters=n, channels=c, kernel_size=self.kernel_size, rank=r)
        check_placement(device, dtype)
        kh, kw = self.kernel_size
        for name, length in (("head", c), ("vertical", kh), ("horizontal", kw)):
            self.register_parameter(name, nn.Parameter(torch.empty(n, r, length, device=device, dtype=dtype)))
        self.register_parameter("bias", nn.Parameter(torch.empty(n, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("form", "training_form"):
            choice(value, name, FORMS)
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draw factors whose product has the variance of ``nn.Conv2d``'s default initialisation."""
        kh, kw = self.kernel_size
        fan_in = self.head.shape[2] * kh * kw
        # A product of three independent factors, summed over R: variance R * s^6 = 1 / (3 fan_in).
        scale = (3.0 * fan_in * self.rank) ** (-1.0 / 6.0)
        for factor in (self.head, self.vertical, self.horizontal):
            nn.init.normal_(factor, std=scale)
        if self.bias is not None:
            bound = fan_in**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def init_weights(self) -> None:
        """Do nothing: mmengine calls it on every module, and decomposed weights must survive it."""

    @property
    def factors(self) -> CPDFactors:
        """The factors (N, R, C), (N, R, Kh), (N, R, Kw), attached to the graph."""
        return CPDFactors(self.head, self.vertical, self.horizontal)

    @property
    def weight(self) -> Tensor:
        """The dense weight (N, C, Kh, Kw) rebuilt from the factors; assign to the factors, not to it."""
        return torch.einsum("nrc,nrh,nrw->nchw", self.head, self.vertical, self.horizontal)

    def set_factors(self, factors: CPDFactors, bias: Tensor | None = None) -> None:
        """Copy factors (and the bias, if given) into the parameters, cast to their dtype and device.

        Raises:
            SurgeryError: A shape differs from the block's.
        """
        pairs = [("head", factors.head), ("vertical", factors.vertical), ("horizontal", factors.horizontal)]
        if bias is not None:
            pairs.append(("bias", bias))
        for name, value in pairs:
            own = getattr(self, name)
            if own is None or own.shape != value.shape:
                raise SurgeryError(
                    f"{name} has shape {tuple(value.shape)}, the block expects "
                    f"{None if own is None else tuple(own.shape)}"
                )
        with torch.no_grad():
            for name, value in pairs:
                getattr(self, name).copy_(value)

    def select_(self, keep: Tensor | Sequence[int], axis: str) -> None:
        """Keep some filters or input channels, in place; parameters become new objects.

        Args:
            keep: Indices to keep, ascending. For ``"channels"`` of a grouped block: indices within one group's C.
            axis: ``"filters"`` or ``"channels"``.

        Raises:
            SurgeryError: An unknown axis, no index, or one out of range.
        """
        if axis not in AXES:
            raise SurgeryError(f"axis {axis!r} is unknown; expected one of {AXES}")
        index = torch.as_tensor(keep, dtype=torch.long, device=self.head.device)
        size = self.head.shape[0 if axis == "filters" else 2]
        if index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= size:
            raise SurgeryError(f"indices {index.tolist()} do not select from {size} {axis}")
        if axis == "channels":
            self._select_parameter("head", index, 2)
            self.in_channels = index.numel() * self.groups
            return
        for name in ("head", "vertical", "horizontal", "bias"):
            if getattr(self, name) is not None:
                self._select_parameter(name, index, 0)
        self.out_channels = index.numel()

    def _select_parameter(self, name: str, index: Tensor, dim: int) -> None:
        old = getattr(self, name)
        new = nn.Parameter(old.detach().index_select(dim, index), requires_grad=old.requires_grad)
        if old.grad is not None:
            new.grad = old.grad.index_select(dim, index)
        setattr(self, name, new)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in_channels, H, W) to (B, out_channels, Ho, Wo)."""
        left, right, top, bottom = sides(
            self.padding,
            size=(x.shape[-2], x.shape[-1]),
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
        )
        inner = (0, 0)
        if self.padding_mode == "zeros" and left == right and top == bottom:
            inner = (top, left)
        else:
            x = pad(x, (left, right, top, bottom), self.padding_mode)
        geometry = ConvGeometry(self.stride, inner, self.dilation, self.groups)
        form = self.training_form if self.training else self.form
        factors = BlockFactors(self.head, self.vertical, self.horizontal, self.bias)
        return FORM_FUNCTIONS[form](x, factors, geometry)

    def extra_repr(self) -> str:
        """Return the arguments that rebuild the block, as ``nn.Conv2d`` shows them."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"]
        defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        parts += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)
