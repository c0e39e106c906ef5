"""Lowering: blocks of factors become ordinary layers, for export, for speed, and for tools that want plain modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks import AUTO, ConvBlock, CPDBlock, CPDLinear, Form, SpatialSVDBlock, form_for
from norton_plugin.blocks.arguments import choice
from norton_plugin.blocks.convolutions import LAYERS
from norton_plugin.blocks.forms import BlockFactors, ConvGeometry
from norton_plugin.blocks.padding import PaddingRule, sides
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.same_padding import same_padding


class Pad(nn.Module):
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
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.dynamic = padding == "dynamic_same"
        geometry = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        # Left, right, top, bottom, the last axis first; the other rules do not look at the size.
        size = (1,) * len(kernel_size)
        self.amounts = [0] * 2 * len(size) if self.dynamic else list(sides(padding, size=size, **geometry))
        self.mode = "constant" if padding_mode == "zeros" else padding_mode
        # Lists, which torch.jit.script can index by a number that it does not know.
        self.kernel_size, self.stride, self.dilation = list(kernel_size), list(stride), list(dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Pad (B, C, H, W)."""
        amounts = self.amounts
        if self.dynamic:
            amounts = self.amounts[:0]  # an empty list of integers, for torch.jit.script too
            for axis in range(1, len(self.kernel_size) + 1):  # counted from the end
                span = same_padding(x.shape[-axis], self.kernel_size[-axis], self.stride[-axis], self.dilation[-axis])
                amounts += [span // 2, span - span // 2]
        return F.pad(x, amounts, mode=self.mode)


class SelectChannels(nn.Module):
    """Picks channels of a map in a given order: the last layer of a lowered block whose filters are not in order.

    Args:
        index: (N,) int64, channels of the input.
        axes: Of the map, behind its channels.
    """

    index: Tensor

    def __init__(self, index: Tensor, axes: int) -> None:
        super().__init__()
        self.dim = -1 - axes
        self.register_buffer("index", index.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, N, H, W)."""
        return x.index_select(self.dim, self.index)


def flushed(weight: Tensor) -> Tensor:
    """Return the weight with zeros in place of subnormal numbers.

    Products of small factors underflow into them, and processors may compute with them many times slower. In half
    precision they reach up to 6e-5, where weights of every model lie: those stay.
    """
    if weight.dtype == torch.float16:
        return weight
    return torch.where(weight.abs() < torch.finfo(weight.dtype).tiny, 0.0, weight)


def _conv(weight: Tensor, bias: Tensor | None, *, groups: int, **geometry: tuple[int, ...]) -> nn.Module:
    """Return a convolution that owns a copy of the weight (N, C, Kh, Kw)."""
    filters, channels, *kernel_size = weight.shape
    conv = LAYERS[len(kernel_size)](
        channels * groups,
        filters,
        tuple(kernel_size),  # type: ignore[arg-type]
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
        An ``nn.Conv2d`` (of 1-D and 3-D kernels ``nn.Conv1d``, ``nn.Conv3d``) or an ``nn.Sequential`` of them, after a
        ``Pad`` and before a ``SelectChannels`` where they are needed; same training flag.

    Raises:
        SurgeryError: A spatial SVD has no such form.
    """
    if isinstance(block, CPDLinear):
        return _linear(block, form).train(block.training)
    chosen = form or block.form
    form = form_for(block)[0] if chosen == AUTO else chosen
    layers: list[nn.Module] = []
    padding = (0,) * len(block.kernel_size)
    if isinstance(block.padding, tuple) and block.padding_mode == "zeros":
        padding = block.padding
    else:
        layers.append(Pad(block.padding, block.padding_mode, block.kernel_size, block.stride, block.dilation))
    with torch.no_grad():
        convolutions = _spatial_convolutions if isinstance(block, SpatialSVDBlock) else _convolutions
        layers += convolutions(block, form, padding)  # type: ignore[arg-type]
    lowered = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
    lowered.from_block = True  # type: ignore[assignment]  # mm/fuse.py folds the norm that follows into the last
    return lowered.train(block.training)


def _convolutions(block: CPDBlock, form: Form, padding: tuple[int, ...]) -> list[nn.Module]:
    factors, geometry = block.block_factors(), ConvGeometry(block.stride, padding, block.dilation, block.groups)
    bias, kernels, k = factors.bias, factors.spatial_kernels(), len(factors.head)
    whole = {"stride": block.stride, "padding": padding, "dilation": block.dilation}
    if form == "dense":
        return [_conv(factors.weight(), bias, groups=block.groups, **whole)]
    if kernels is None:
        return [_conv(factors.pointwise(), None, groups=block.groups, **whole), *_mix(factors)]
    layers: list[nn.Module] = [_conv(factors.pointwise(), None, groups=block.groups)]
    if form == "grouped" and (mixing := factors.mixing_kernels()) is not None:
        return [*layers, _conv(mixing, factors.placed_bias(), groups=k, **whole), *_order(factors)]
    components = block.components
    if form == "depthwise":
        layers.append(_conv(kernels.flatten(0, 1).unsqueeze(1), None, groups=components, **whole))
        return [*layers, *_mix(factors)]
    last = factors.axes - 1
    for axis in range(last):
        layers.append(_conv(factors.along(axis), None, **geometry.along(axis, components)._asdict()))
    if factors.mix is None:
        return [*layers, _conv(factors.summing(), bias, **geometry.along(last, k)._asdict())]
    layers.append(_conv(factors.along(last), None, **geometry.along(last, components)._asdict()))
    return [*layers, *_mix(factors)]


def _spatial_convolutions(block: SpatialSVDBlock, form: Form, padding: tuple[int, ...]) -> list[nn.Module]:
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
        ones = factors.head.new_ones(k, r, *(1,) * factors.axes)
        return [_conv(ones, factors.bias, groups=k)]
    return [_conv(factors.mixing(), factors.placed_bias(), groups=k), *_order(factors)]


def _order(factors: BlockFactors) -> list[nn.Module]:
    """Return what brings filters from their places into their order, where they are not."""
    slot = factors.slot
    places = factors.head.shape[0] * factors.cluster_size
    if slot is None or (len(slot) == places and torch.equal(slot, torch.arange(places).to(slot))):
        return []
    return [SelectChannels(slot, factors.axes)]


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
