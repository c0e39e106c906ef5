"""The layer that takes a convolution's place as two one-dimensional convolutions: a spatial SVD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks.arguments import check_size, whole_number
from norton_plugin.blocks.clusters import BlockLevel
from norton_plugin.blocks.conv_block import ConvBlock
from norton_plugin.blocks.forms import AUTO, ChosenForm, ConvGeometry, Form
from norton_plugin.blocks.padding import PaddingRule
from norton_plugin.blocks.spatial_selection import select_spatial_
from norton_plugin.cpd import SpatialFactors
from norton_plugin.errors import SurgeryError


class SpatialSVDBlock(ConvBlock):
    """A 2-D convolution as a vertical and a horizontal one (Jaderberg et al., arXiv:1405.3866).

    C channels become M components by a kernel Kh x 1, and these become N filters by a kernel 1 x Kw; both are dense
    convolutions (docs/method.md, section 6). The whole contract of ``nn.Conv2d`` is kept, as ``ConvBlock`` says.

    Args:
        in_channels: Channels of the input.
        out_channels: N, number of filters.
        kernel_size: (Kh, Kw) or one number for both.
        rank: R, components of each channel group; at least 1.
        stride: Pixels, one or (vertical, horizontal); each convolution takes its own.
        padding: Pixels, ``"same"``, ``"valid"`` or ``"dynamic_same"`` (see ``blocks.padding``).
        dilation: Pixels, one or (vertical, horizontal).
        groups: Groups of channels, of both convolutions; each filter sees C = ``in_channels / groups`` of them.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        form: In evaluation mode ``"separable"``, the two convolutions, ``"dense"``, one with the rebuilt weight, or
            ``"auto"``, the one that should be faster on the input of each call.
        training_form: One of the two in training mode; ``"dense"`` needs the least activation memory.
        device: Device of the factors.
        dtype: Data type of the factors.

    Raises:
        SurgeryError: An argument is of a wrong type or out of range, or the block would take gigabytes; nothing is
            allocated then.

    Shape:
        Input (B, in_channels, H, W), output (B, out_channels, Ho, Wo) as of ``nn.Conv2d``.
        Parameters ``vertical`` (M, C, Kh), M = groups * R, ``horizontal`` (N, R, Kw), ``bias`` (N,) or None. Buffer
        ``group`` (N,), int64, the channel group of each filter, by which cuts are followed: not part of the state
        dict, and None without groups.
    """

    forms = ("separable", "dense")
    # All filters (of a group) mix all components.
    level: BlockLevel = "spatial"
    filter_factor = "horizontal"

    vertical: nn.Parameter
    horizontal: nn.Parameter
    group: Tensor | None

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
        form: ChosenForm = AUTO,
        training_form: Form = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            form=form,
            training_form=training_form,
            device=device,
            dtype=dtype,
        )
        self.rank = whole_number(rank, "rank")
        n, (kh, kw), c = self.out_channels, self.kernel_size, self.in_channels // self.groups
        # The dense weight, and both factors.
        check_size(filters=n, channels=c, kernel_size=self.kernel_size, rank=1, clusters=1)
        check_size(filters=self.components, channels=c, kernel_size=(kh, 1), rank=1, clusters=1)
        check_size(filters=n, channels=self.rank, kernel_size=(1, kw), rank=1, clusters=1)
        for name, shape in {"vertical": (self.components, c, kh), "horizontal": (n, self.rank, kw)}.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.register_parameter("bias", nn.Parameter(torch.empty(n, device=device, dtype=dtype)) if bias else None)
        self.number_groups_()
        self.reset_parameters()

    def number_groups_(self) -> None:
        """Write down the channel group of each filter, for cuts to come; without groups there is nothing to write."""
        groups, filters = self.groups, self.out_channels
        numbers = torch.arange(groups, device=self.horizontal.device).repeat_interleave(filters // groups)
        self.register_buffer("group", numbers if groups > 1 else None, persistent=False)

    def reset_parameters(self) -> None:
        """Draw factors whose product has the variance of ``nn.Conv2d``'s default initialisation."""
        fan_in = self.vertical[0].numel() * self.kernel_size[1]
        # A product of two independent factors, summed over R: variance R * s^4 = 1 / (3 fan_in).
        scale = (3.0 * fan_in * self.rank) ** -0.25
        nn.init.normal_(self.vertical, std=scale)
        nn.init.normal_(self.horizontal, std=scale)
        if self.bias is not None:
            bound = fan_in**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def clusters(self) -> int:  # type: ignore[override]
        """Sets of filters that share components: one in each channel group."""
        return self.groups

    @property
    def components(self) -> int:
        """M = groups * R, components of all channel groups together."""
        return self.groups * self.rank

    @property
    def factors(self) -> SpatialFactors:
        """The factors, attached to the graph."""
        return SpatialFactors(self.vertical, self.horizontal)

    @property
    def weight(self) -> Tensor:
        """The dense weight (N, C, Kh, Kw) rebuilt from the factors; assign to the factors, not to it."""
        return self.factors.reconstruct()

    def set_factors(self, factors: SpatialFactors, bias: Tensor | None = None) -> None:
        """Copy factors (and the bias, if given) into the parameters, cast to their dtype and device.

        Args:
            factors: Of as many groups and components as the block has.
            bias: (N,) or None.

        Raises:
            SurgeryError: A shape differs from the block's.
        """
        values = {**factors._asdict(), **({} if bias is None else {"bias": bias})}
        for name, value in values.items():
            own = getattr(self, name)
            if own is None or own.shape != value.shape:
                raise SurgeryError(
                    f"{name} has shape {tuple(value.shape)}, the block expects "
                    f"{None if own is None else tuple(own.shape)}"
                )
        with torch.no_grad():
            for name, value in values.items():
                getattr(self, name).copy_(value)
        self.number_groups_()  # torch's skip_init leaves buffers without values

    def select_(self, keep: Tensor | Sequence[int], axis: str) -> None:
        """Keep some filters, input channels or components, in place; parameters become new objects.

        Components that no filter uses any more go with the filters.

        Args:
            keep: Indices to keep, ascending. For ``"channels"`` of a grouped block: indices within one group's C. For
                ``"components"``: component r of group g is g * R + r, and as many stay in each.
            axis: ``"filters"``, ``"channels"`` or ``"components"``.

        Raises:
            SurgeryError: An unknown axis, no index, one out of range, or unequal numbers in the groups.
        """
        select_spatial_(self, keep, axis)

    def run_form(self, form: Form, x: Tensor, geometry: ConvGeometry) -> Tensor:
        """Compute the padded convolution in one of the two forms."""
        if form == "dense":
            return F.conv2d(x, self.weight, self.bias, *geometry)
        (sh, sw), (ph, pw), (dh, dw), groups = geometry
        x = F.conv2d(x, self.vertical.unsqueeze(3), None, (sh, 1), (ph, 0), (dh, 1), groups)
        return F.conv2d(x, self.horizontal.unsqueeze(2), self.bias, (1, sw), (0, pw), (1, dw), groups)

    def size_arguments(self) -> dict[str, Any]:
        """Return the arguments that say how many components there are, as ``repr`` shows them."""
        return {"rank": self.rank}
