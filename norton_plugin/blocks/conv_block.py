"""What every layer that takes a convolution's place has in common: the contract of ``nn.Conv2d``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks.arguments import check_channels, check_flag, check_placement, choice, per_axis, whole_number
from norton_plugin.blocks.clusters import BlockLevel
from norton_plugin.blocks.derived import assigned_
from norton_plugin.blocks.form_choice import form_for
from norton_plugin.blocks.forms import AUTO, FORMS, ChosenForm, ConvGeometry, Form
from norton_plugin.blocks.padding import PaddingRule, normalise_padding, pad, sides
from norton_plugin.blocks.scripting import NotScripted
from norton_plugin.errors import SurgeryError


@contextmanager
def all_in_form(model: nn.Module, form: Form) -> Iterator[None]:
    """Let all blocks of a model run in one form in evaluation mode; each gets its own back.

    Args:
        model: May hold blocks of every kind.
        form: One that all of them have.
    """
    blocks = [(module, module.form) for module in model.modules() if isinstance(module, ConvBlock)]
    try:
        for block, _ in blocks:
            block.form = form
        yield
    finally:
        for block, own in blocks:
            block.form = own


class ConvBlock(NotScripted, ABC):
    """A convolution whose weight is computed from factors; what these are, its subclasses say.

    It is 2-D but for subclasses that name other ``axes``. The whole contract of ``nn.Conv2d`` is kept: geometry,
    padding mode, groups, bias, device, dtype. ``weight`` gives the rebuilt dense weight for code that reads it. The
    same factors run in several equivalent forms, which change no state dict.

    Args:
        in_channels: Channels of the input.
        out_channels: N, number of filters.
        kernel_size: (Kh, Kw) or one number for both.
        stride: Pixels, one or (vertical, horizontal).
        padding: Pixels, ``"same"``, ``"valid"`` or ``"dynamic_same"`` (see ``blocks.padding``).
        dilation: Pixels, one or (vertical, horizontal).
        groups: Groups of channels; each filter sees C = ``in_channels / groups`` of them.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        form: Which of the equivalent forms runs in evaluation mode; ``"auto"`` is the one that should be fastest on the
            input of each call (``blocks.form_choice``).
        training_form: Which one runs in training mode; ``"dense"`` needs the least activation memory.
        device: Device of the factors.
        dtype: Data type of the factors.

    Raises:
        SurgeryError: An argument is of a wrong type or out of range.
    """

    # Read by code that expects a convolution; a block is never transposed.
    transposed = False
    output_padding: tuple[int, ...] = (0, 0)
    # mmengine's BaseModule.init_weights asks children for this; the factors must survive it.
    is_init = True
    forms: tuple[Form, ...] = FORMS
    # Of the kernel, as they follow each other in the weight.
    axes: tuple[str, ...] = ("vertical", "horizontal")

    rank: int
    clusters: int
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int],
        padding: PaddingRule | int | str,
        dilation: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        form: ChosenForm,
        training_form: Form,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.in_channels = whole_number(in_channels, "in_channels")
        self.out_channels = whole_number(out_channels, "out_channels")
        axes = len(self.axes)
        self.kernel_size = per_axis(kernel_size, "kernel_size", axes=axes)
        self.stride = per_axis(stride, "stride", axes=axes)
        self.dilation = per_axis(dilation, "dilation", axes=axes)
        self.groups = whole_number(groups, "groups")
        self.padding = normalise_padding(padding, padding_mode, axes=axes)
        self.padding_mode = padding_mode
        if self.padding == "same" and max(self.stride) > 1:
            raise SurgeryError(f"padding 'same' needs stride 1, got {self.stride}; use 'dynamic_same' or pixels")
        self.form = form
        self.training_form = training_form
        check_flag(bias, "bias")
        check_channels(self.in_channels, self.out_channels, self.groups)
        check_placement(device, dtype)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("form", "training_form"):
            choice(value, name, (*self.forms, AUTO) if name == "form" else self.forms)
        if not assigned_(self, name, value):
            super().__setattr__(name, value)

    def init_weights(self) -> None:
        """Do nothing: mmengine calls it on every module, and decomposed weights must survive it."""

    @property
    @abstractmethod
    def level(self) -> BlockLevel:
        """Which filters share components, and of what kind they are."""

    @property
    @abstractmethod
    def components(self) -> int:
        """M, components of all clusters (or of all filters) together."""

    @property
    @abstractmethod
    def filter_factor(self) -> str:
        """Name of the factor whose rows are of one filter each; the weight is linear in it."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The dense weight (N, C, Kh, Kw) rebuilt from the factors; assign to the factors, not to it."""

    @abstractmethod
    def run_form(self, form: Form, x: Tensor, geometry: ConvGeometry) -> Tensor:
        """Compute the padded convolution in one of the equivalent forms."""

    @abstractmethod
    def size_arguments(self) -> dict[str, Any]:
        """Return the arguments that say how many components there are, as ``repr`` shows them."""

    @abstractmethod
    def select_(self, keep: Tensor | Sequence[int], axis: str) -> None:
        """Keep some filters, input channels or components, in place; parameters become new objects."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in_channels, H, W) to (B, out_channels, Ho, Wo)."""
        axes = len(self.axes)
        amounts = sides(
            self.padding,
            size=tuple(x.shape[axis] for axis in range(-axes, 0)),
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
        )
        inner = (0,) * axes
        fixed = self.padding != "dynamic_same"  # whatever the size of the map
        if fixed and self.padding_mode == "zeros" and amounts[::2] == amounts[1::2]:
            inner = amounts[::-2]
        else:
            x = pad(x, amounts, self.padding_mode)
        geometry = ConvGeometry(self.stride, inner, self.dilation, self.groups)
        form = self.training_form if self.training else self.form
        if form == AUTO:
            form, _ = form_for(self, x, lowered=False)
        return self.run_form(form, x, geometry)

    def extra_repr(self) -> str:
        """Return the arguments that rebuild the block, as ``nn.Conv2d`` shows them."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"{name}={value}" for name, value in self.size_arguments().items()]
        ones, none = (1,) * len(self.axes), (0,) * len(self.axes)
        defaults = {"stride": ones, "padding": none, "dilation": ones, "groups": 1, "padding_mode": "zeros"}
        parts += [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)
