"""Module types that own channels: what the graph has to know of each, and how a user adds one.

Most layers need no entry: their tensors are labelled, and the operations they run say the rest. An entry is needed
for a layer whose filters are to be pruned (``produces``), whose weight is computed from other tensors (``dense``), or
that keeps its sizes as attributes (``refresh``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from norton_plugin.channels.trace import Trace


Cuts = Mapping[int, Sequence[tuple[str, int] | tuple[str, int, str]]]


@dataclass(frozen=True)
class DenseEquivalent:
    """How a layer whose weight is computed from several tensors runs as an ordinary layer with one dense weight.

    Attributes:
        weight: ``(module) -> weight``: the dense weight, dimension 0 the filters and dimension 1 the input channels.
        forward: ``(module, weight, *args, **kwargs) -> output``: the module's forward pass with that weight, by
            operations that the graph knows, such as ``torch.nn.functional.conv2d``.
        cuts: Dimension of the dense weight -> the (tensor name, axis) pairs of the module that lose positions when
            the dense weight does; or a function from the module to that, where modules of the type differ. The weight
            has to be linear in the first tensor of dimension 0, which is multiplied where rows are rescaled. Where the
            last dimension of a tensor holds several in one, a third entry names the attribute with their sizes
            (``CutSite.layout``); the axis is counted among those.
        tensors: Further tensors of the module that the weight is computed from.
    """

    weight: Callable[[Any], Tensor]
    forward: Callable[..., Any]
    cuts: Cuts | Callable[[Any], Cuts]
    tensors: tuple[str, ...] = ()

    def cuts_of(self, module: nn.Module) -> Cuts:
        """Return which tensors of this module lose positions with the dense weight, by its dimensions."""
        return self.cuts(module) if callable(self.cuts) else self.cuts

    def tensors_of(self, module: nn.Module) -> frozenset[str]:
        """Return the tensors of a module that are no channels on their own: the dense weight stands for them."""
        return frozenset(cut[0] for cuts in self.cuts_of(module).values() for cut in cuts).union(self.tensors)


@dataclass(frozen=True)
class CurrentSizes:
    """Numbers of channels that the graph knows and that no tensor of the layer shows.

    Attributes:
        inputs: Channels that a grouped layer reads now; None for all other layers.
        normalized: Channels along the last dimension that a norm reads now; None for all other layers.
        whole_groups: Whether a group norm loses whole groups.
    """

    inputs: int | None = None
    normalized: int | None = None
    whole_groups: bool = False


def _first_dimension(module: nn.Module) -> int:
    return 0


@dataclass(frozen=True)
class LayerType:
    """A module type that owns channels.

    Attributes:
        kind: The type; it stands for its subclasses as well, unless they have an entry of their own.
        produces: Whether its ``weight`` (or dense equivalent) has filters whose outputs are channels to prune.
        dense: How it runs with one dense weight, where it has none of its own.
        channel_dims: Dimensions of its ``weight`` that number channels (not the kernel's); None means all.
        filter_dim: ``(module) -> dimension`` of its weight that numbers its filters.
        refresh: ``(module, sizes) -> None``: sets the size attributes after tensors were cut.
        before_run: ``(trace, module) -> None``: notes couplings of channels that its code implies, each time before
            it runs in the trace.
        places: Positions of arguments of its call whose channels are places, heads or experts: they stay.
        recognised_by: An attribute that makes modules without an entry count as of this type; or a function that tells
            whether a module does.
    """

    kind: type[nn.Module]
    produces: bool = False
    dense: DenseEquivalent | None = None
    channel_dims: tuple[int, ...] | None = None
    filter_dim: Callable[[Any], int] = _first_dimension
    refresh: Callable[[Any, CurrentSizes], None] | None = None
    before_run: Callable[[Trace, Any], None] | None = None
    places: tuple[int, ...] = ()
    recognised_by: str | Callable[[object], bool] | None = None


_TYPES: dict[type[nn.Module], LayerType] = {}


def register_layer(layer: LayerType, *, replace: bool = False) -> LayerType:
    """Make a module type known to all graphs that are built from now on.

    A convolution whose weight is a product of two tensors::

        register_layer(LayerType(
            LowRankConv,
            produces=True,
            dense=DenseEquivalent(
                weight=lambda conv: torch.einsum("nr,rckl->nckl", conv.mix, conv.basis),
                forward=lambda conv, weight, x: torch.nn.functional.conv2d(x, weight, conv.bias, padding=1),
                cuts={0: [("mix", 0)], 1: [("basis", 1)]},
            ),
        ))

    Args:
        layer: The type, and what the graph has to know of it.
        replace: Replace an entry of the same type.

    Returns:
        The entry.

    Raises:
        ValueError: The type has an entry already, and ``replace`` is not set.
    """
    if layer.kind in _TYPES and not replace:
        raise ValueError(f"{layer.kind.__qualname__} is registered already; pass replace=True to replace its entry")
    _TYPES[layer.kind] = layer
    return layer


def layer_type(module: object) -> LayerType | None:
    """Return the entry of a module: of its class or its nearest base class; None where there is none."""
    for kind in type(module).__mro__:
        if kind in _TYPES:
            return _TYPES[kind]
    for layer in _TYPES.values():
        sign = layer.recognised_by
        if sign is not None and (hasattr(module, sign) if isinstance(sign, str) else sign(module)):
            return layer
    return None


def filter_dim_of(module: object) -> int:
    """Return the dimension of a module's weight that numbers its filters: 1 of transposed convolutions, else 0."""
    found = layer_type(module)
    return 0 if found is None else found.filter_dim(module)


def is_producer(module: object) -> bool:
    """Return whether a module's filters make channels that can be pruned."""
    found = layer_type(module)
    return found is not None and found.produces


def weight_of(module: object) -> Tensor | None:
    """Return the weight of a layer, or its dense equivalent's, detached; None where it has none."""
    found = layer_type(module)
    if found is not None and found.dense is not None:
        return found.dense.weight(module).detach()
    weight = getattr(module, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else None


def dense_weights(model: nn.Module) -> dict[nn.Module, Tensor]:
    """Return the dense weight, detached, of every module of a model that has a dense equivalent."""
    found = {}
    for module in model.modules():
        layer = layer_type(module)
        if layer is not None and layer.dense is not None:
            found[module] = layer.dense.weight(module).detach()
    return found


def refresh_grouped_(layer: Any, sizes: CurrentSizes, width: int) -> None:
    """Set ``in_channels`` and ``groups`` of a convolution.

    Args:
        layer: Changed in place.
        sizes: What the graph knows.
        width: Input channels of one filter now.
    """
    if layer.groups == 1:
        layer.in_channels = width
    elif sizes.inputs is not None:
        layer.in_channels = sizes.inputs
        layer.groups = layer.in_channels // width
