"""Lowering: blocks of factors become ordinary layers, for export, for speed, and for tools that want plain modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks import AUTO, ConvBlock, CPDBlock, CPDLinear, Form, SpatialSVDBlock, form_for
from norton_plugin.blocks.arguments import choice
from norton_plugin.blocks.forms import BlockFactors
from norton_plugin.blocks.padding import PaddingRule, same_padding, sides
from norton_plugin.errors import SurgeryError


class Pad2d(nn.Module):
    """Pads a map as the first layer of a lowered block whose convolutions cannot do it themselves.

    Args:
        padding: As in ``blocks.padding``.
        padding_mode: As of ``nn.Conv2d``.
        kernel_size: Of the convolution that follows.
        stride: Of the convolution that follows.
        dilation: Of the convolution that follows.
    """

    def __init__(
        self,
        padding: PaddingRule,
        padding_mode: str,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int],
    ) -> None:
        super().__init__()
        self.dynamic = padding == "dynamic_same"
        geometry = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        # Left, right, top, bottom; the other rules do not look at the size.
        self.amounts = (0, 0, 0, 0) if self.dynamic else sides(padding, size=(1, 1), **geometry)
        self.mode = "constant" if padding_mode == "zeros" else padding_mode
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        """Pad (B, C, H, W)."""
        left, right, top, bottom = self.amounts
        if self.dynamic:
            height = same_padding(x.shape[-2], self.kernel_size[0], self.stride[0], self.dilation[0])
            width = same_padding(x.shape[-1], self.kernel_size[1], self.stride[1], self.dilation[1])
            left, top = width // 2, height // 2
            right, bottom = width - left, height - top
        return F.pad(x, [left, right, top, bottom], mode=self.mode)


class SelectChannels(nn.Module):
    """Picks channels of a map in a given order: the last layer of a lowered block whose filters are not in order.

    Args:
        index: (N,) int64, channels of the input.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, N, H, W)."""
        return x.index_select(-3, self.index)


def flushed(weight: Tensor) -> Tensor:
    """Return the weight with zeros in place of subnormal numbers.

    Products of small factors underflow into them, and processors may compute with them many times slower. In half
    precision they reach up to 6e-5, where weights of every model lie: those stay.
    """
    if weight.dtype == torch.float16:
        return weight
    return torch.where(weight.abs() < torch.finfo(weight.dtype).tiny, 0.0, weight)


def _conv(weight: Tensor, bias: Tensor | None, *, groups: int, **geometry: tuple[int, int]) -> nn.Conv2d:
    """Return a convolution that owns a copy of the weight (N, C, Kh, Kw)."""
    filters, channels, kh, kw = weight.shape
    conv = nn.Conv2d(
        channels * groups,
        filters,
        (kh, kw),
        groups=groups,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
        **geometry,  # type: ignore[arg-type]
    )
    conv.weight.data.copy_(flushed(weight))
    if bias is not None and conv.bias is not None:
        conv.bias.data.copy_(bias)
    return conv


def _linear(layer: CPDLinear, form: Form | None) -> nn.Module:
    """Return the Linear layers that a CPDLinear equals."""
    with torch.no_grad():
        weights = [layer.weight] if form == "dense" else [layer.head, layer.mix]
        layers = []
        for weight, bias in zip(weights, [*(None,) * (len(weights) - 1), layer.bias], strict=True):
            outputs, inputs = weight.shape
            kind = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
            layers.append(nn.utils.skip_init(nn.Linear, inputs, outputs, **kind))
            layers[-1].weight.copy_(flushed(weight))
            if bias is not None:
                layers[-1].bias.copy_(bias)
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def lower_block(block: ConvBlock | CPDLinear, form: Form | None = None) -> nn.Module:
    """Return the ordinary layers that compute what a block computes.

    Args:
        block: Left as it is.
        form: Which equivalent form; the block's own by default, and for ``"auto"`` the one that should be fastest on
            maps of a usual size. ``"depthwise"`` ends in a 1x1 convolution of ones that sums over R, where filters
            share nothing. A SpatialSVDBlock becomes its two convolutions, a CPDLinear two Linear layers; with
            ``"dense"`` they become one.

    Returns:
        An ``nn.Conv2d`` or an ``nn.Sequential`` of them, after a ``Pad2d`` and before a ``SelectChannels`` where they
        are needed; same training flag.

    Raises:
        SurgeryError: A spatial SVD has no such form.
    """
    if isinstance(block, CPDLinear):
        return _linear(block, form).train(block.training)
    chosen = form or block.form
    form = form_for(block)[0] if chosen == AUTO else chosen
    layers: list[nn.Module] = []
    padding = (0, 0)
    if isinstance(block.padding, tuple) and block.padding_mode == "zeros":
        padding = block.padding
    else:
        layers.append(Pad2d(block.padding, block.padding_mode, block.kernel_size, block.stride, block.dilation))
    with torch.no_grad():
        convolutions = _spatial_convolutions if isinstance(block, SpatialSVDBlock) else _convolutions
        layers += convolutions(block, form, padding)  # type: ignore[arg-type]
    lowered = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    lowered.from_block = True  # type: ignore[assignment]  # mm/fuse.py folds the norm that follows into the last
    return lowered.train(block.training)


def _convolutions(block: CPDBlock, form: Form, padding: tuple[int, int]) -> list[nn.Module]:
    factors = block.block_factors()
    bias, kernels = factors.bias, factors.spatial_kernels()
    k, r, c = factors.head.shape
    (sh, sw), (ph, pw), (dh, dw) = block.stride, padding, block.dilation
    whole = {"stride": (sh, sw), "padding": (ph, pw), "dilation": (dh, dw)}
    if form == "dense":
        return [_conv(factors.weight(), bias, groups=block.groups, **whole)]
    pointwise = factors.head.reshape(k * r, c, 1, 1)
    if kernels is None or factors.vertical is None or factors.horizontal is None:
        return [_conv(pointwise, None, groups=block.groups, **whole), *_mix(factors)]
    layers: list[nn.Module] = [_conv(pointwise, None, groups=block.groups)]
    if form == "grouped" and (mixing := factors.mixing_kernels()) is not None:
        return [*layers, _conv(mixing, factors.placed_bias(), groups=k, **whole), *_order(factors)]
    if form == "depthwise":
        layers.append(_conv(kernels.flatten(0, 1).unsqueeze(1), None, groups=k * r, **whole))
        return [*layers, *_mix(factors)]
    rows = {"stride": (sh, 1), "padding": (ph, 0), "dilation": (dh, 1)}
    columns = {"stride": (1, sw), "padding": (0, pw), "dilation": (1, dw)}
    layers.append(_conv(factors.vertical.reshape(k * r, 1, -1, 1), None, groups=k * r, **rows))
    if factors.mix is None:
        return [*layers, _conv(factors.horizontal.unsqueeze(-2), bias, groups=k, **columns)]
    layers.append(_conv(factors.horizontal.reshape(k * r, 1, 1, -1), None, groups=k * r, **columns))
    return [*layers, *_mix(factors)]


def _spatial_convolutions(block: SpatialSVDBlock, form: Form, padding: tuple[int, int]) -> list[nn.Module]:
    """Return the vertical and the horizontal convolution of a spatial SVD, or the dense one."""
    choice(form, "form", block.forms)
    (sh, sw), (ph, pw), (dh, dw), groups = block.stride, padding, block.dilation, block.groups
    if form == "dense":
        whole = {"stride": (sh, sw), "padding": (ph, pw), "dilation": (dh, dw)}
        return [_conv(block.weight, block.bias, groups=groups, **whole)]
    rows = {"stride": (sh, 1), "padding": (ph, 0), "dilation": (dh, 1)}
    columns = {"stride": (1, sw), "padding": (0, pw), "dilation": (1, dw)}
    return [
        _conv(block.vertical.unsqueeze(3), None, groups=groups, **rows),
        _conv(block.horizontal.unsqueeze(2), block.bias, groups=groups, **columns),
    ]


def _mix(factors: BlockFactors) -> list[nn.Module]:
    """Return the 1x1 convolution from components to filters."""
    k, r, _ = factors.head.shape
    if factors.mix is None:
        return [_conv(torch.ones_like(factors.head[:, :, :1]).unsqueeze(-1), factors.bias, groups=k)]
    mix = factors.placed(factors.mix).view(-1, r, 1, 1)
    return [_conv(mix, factors.placed_bias(), groups=k), *_order(factors)]


def _order(factors: BlockFactors) -> list[nn.Module]:
    """Return what brings filters from their places into their order, where they are not."""
    slot = factors.slot
    places = factors.head.shape[0] * factors.cluster_size
    if slot is None or (len(slot) == places and torch.equal(slot, torch.arange(places).to(slot))):
        return []
    return [SelectChannels(slot)]


def lower_(model: nn.Module) -> int:
    """Replace every block by the convolutions of its form, and every CPDLinear by two Linear layers.

    It works in place and in every parent. The result has other parameter names: it is for inference and export. Keep
    the artefact for training.

    Args:
        model: Changed in place.

    Returns:
        How many blocks were lowered.

    Raises:
        SurgeryError: The model has neither, or is one.
    """
    if isinstance(model, ConvBlock | CPDLinear):
        raise SurgeryError(f"the model is itself a {type(model).__name__}; use lower_block(model)")
    lowered: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # all names of a child: named_children() gives the first
            if isinstance(child, ConvBlock | CPDLinear):
                setattr(parent, name, lowered.setdefault(child, lower_block(child)))
    if not lowered:
        raise SurgeryError("the model has no CPDBlock to lower, and no CPDLinear")
    return len(lowered)
