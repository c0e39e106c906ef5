"""The dimensions of a model's parameters and buffers: which labels stand for their positions, and where to cut them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from norton_plugin.channels.cut_sites import CutSite
from norton_plugin.channels.label_maps import ChannelLabels, consecutive, spread
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.layers import DenseEquivalent, LayerType, filter_dim_of, layer_type
from norton_plugin.modules.swap import names_by_identity

# In place of a tensor's name: what a module without weights returns.
RETURNED = "<returned>"
# In place of a tensor's name: a constant that is made anew in every run, in the size that an attribute says.
COUNTED = "<counted>"


@dataclass
class TensorAxis:
    """One dimension of one tensor, every position of which has a label.

    The dense weight of a layer with a dense equivalent counts as a tensor; its sites are then in several tensors.

    Attributes:
        owner: The module that holds the tensor.
        name: Dotted name of the module.
        tensor: Name of the tensor in it, ``RETURNED`` or ``COUNTED``.
        dim: Dimension.
        base: Label of position 0; position i has the label base + i.
        size: Number of positions.
        numbers_filters: Whether a position is a filter of the owner (which may share the tensor with another layer).
        sites: Where positions are cut out, for all modules that share the tensor.
        role: ``"out"`` (filters), ``"in"`` (input channels) or ``"both"``; filled in by the trace.
    """

    owner: nn.Module
    name: str
    tensor: str
    dim: int
    base: int
    size: int
    numbers_filters: bool
    sites: list[CutSite] = field(default_factory=list)
    role: str = "both"


class AxisTable:
    """All tensor axes of a model, and the labels of its parameters and buffers.

    Floating-point tensors get labels. The kernel dimensions of convolutions get none, nor do scripted modules: their
    code is compiled, and their tensors stay as they are.

    Args:
        model: Not changed.
        table: Where labels are allocated.
    """

    def __init__(self, model: nn.Module, table: LabelTable) -> None:
        self.axes: list[TensorAxis] = []
        self.labels = WeakTensorKeyDictionary()
        self.dense_weights: dict[nn.Module, Tensor] = {}
        self._table = table
        self._names = names_by_identity(model)
        self._returned: dict[nn.Module, TensorAxis] = {}
        seen: dict[Tensor, list[TensorAxis]] = {}
        for module, names in self._names.items():
            layer = layer_type(module)
            for tensor_name, tensor in _tensors(module, layer):
                if tensor in seen:
                    for axis in seen[tensor]:
                        axis.sites.append(CutSite(module, tensor_name, axis.dim))
                    continue
                dims = [d for d in range(tensor.dim()) if tensor.shape[d] > 1]
                if layer is not None and layer.channel_dims is not None and tensor_name == "weight":
                    dims = [d for d in dims if d in layer.channel_dims]
                seen[tensor] = self._add(module, names[0], tensor_name, tensor, dims)
            if layer is not None and layer.dense is not None:
                self._add_dense(module, names[0], layer.dense)
        self._number_labels()

    @property
    def modules(self) -> Container[nn.Module]:
        """All modules of the model."""
        return self._names

    def _number_labels(self) -> None:
        self._bases = torch.tensor([axis.base for axis in self.axes] or [1])

    def returned(self, module: nn.Module, dim: int, size: int) -> Tensor | None:
        """Return the labels of what a module returns, (size,): always the same ones.

        Args:
            module: Without weights; None is returned where it is no part of the model.
            dim: Dimension of its output.
            size: Positions along it; None is returned where it was another number before.
        """
        if module not in self._names:
            return None
        axis = self._returned.get(module)
        if axis is None:
            sites = [CutSite(module, RETURNED, dim)]
            base = self._table.allocate(size)
            axis = TensorAxis(module, self._names[module][0], RETURNED, dim, base, size, False, sites)
            self._returned[module] = axis
            self.axes.append(axis)
            self._number_labels()
        return consecutive(axis.base, size) if (axis.dim, axis.size) == (dim, size) else None

    def _add(self, module: nn.Module, name: str, tensor_name: str, tensor: Tensor, dims: list[int]) -> list[TensorAxis]:
        filter_dim = filter_dim_of(module)
        axes, maps = [], []
        for d in dims:
            size = tensor.shape[d]
            base = self._table.allocate(size)
            sites = [CutSite(module, tensor_name, d)]
            axes.append(TensorAxis(module, name, tensor_name, d, base, size, d == filter_dim, sites))
            maps.append(spread(consecutive(base, size), tensor.shape, d))
        self.axes += axes
        self.labels[tensor] = ChannelLabels(tuple(maps))
        return axes

    def _add_dense(self, module: nn.Module, name: str, dense: DenseEquivalent) -> None:
        """Label the dense weight of a layer whose own tensors are no channels by themselves."""
        weight = dense.weight(module).detach()
        cuts = dense.cuts_of(module)
        dims = [d for d in cuts if weight.shape[d] > 1]
        for axis in self._add(module, name, "weight", weight, sorted(dims)):
            axis.sites = [CutSite(module, *cut) for cut in cuts[axis.dim]]
        self.dense_weights[module] = weight

    def counted(self, module: nn.Module, size: int) -> Tensor:
        """Return new labels for a dimension of a constant that fits any channels, (size,): no tensor is cut for them.

        Args:
            module: Of the model; makes the constant.
            size: Positions along the dimension.
        """
        base = self._table.allocate(size)
        self.axes.append(TensorAxis(module, self._names[module][0], COUNTED, 0, base, size, False))
        self._number_labels()
        return consecutive(base, size)

    def axis_of(self, labels: Tensor) -> Tensor:
        """Return the positions in ``axes`` of the axes that labels belong to."""
        return torch.searchsorted(self._bases, labels, right=True) - 1


def _tensors(module: nn.Module, layer: LayerType | None) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, torch.jit.ScriptModule):
        return
    covered = layer.dense.tensors_of(module) if layer is not None and layer.dense is not None else frozenset()
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if name not in covered and tensor is not None and tensor.is_floating_point():
                yield name, tensor
