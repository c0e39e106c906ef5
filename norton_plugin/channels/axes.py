"""The tensors of a model as sets of slots: (tensor, dimension, position), numbered by labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels.label_maps import Shadow, as_labels, spread
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.modules.swap import names_by_identity


@dataclass(frozen=True)
class Place:
    """A tensor of a module and the axis that loses positions."""

    module: nn.Module
    tensor: str
    axis: int


@dataclass
class Family:
    """The slots of one dimension of one tensor (of several tensors, for the factors of a CPDBlock).

    Attributes:
        owner: The module that holds the tensor.
        name: Dotted name of the module.
        tensor: Name of the tensor in it.
        dim: Dimension.
        base: Label of position 0.
        size: Positions.
        places: Where positions are cut out, for all modules that share the tensor.
        role: ``"out"``, ``"in"`` or ``"both"``; filled in by the trace.
    """

    owner: nn.Module
    name: str
    tensor: str
    dim: int
    base: int
    size: int
    places: list[Place] = field(default_factory=list)
    role: str = "both"

    @property
    def numbers_filters(self) -> bool:
        """Whether a position along it is a filter to the owner, which may share the tensor with another layer."""
        return self.dim == (1 if getattr(self.owner, "transposed", False) else 0)


class Registry:
    """All families of a model, and the shadows of its parameters.

    Args:
        model: Its floating-point parameters and buffers get labels, but for the kernel sizes of convolutions and for
            scripted modules: the code of those is compiled, and their tensors stay as they are.
        table: Where labels are taken from.
    """

    def __init__(self, model: nn.Module, table: LabelTable) -> None:
        self.families: list[Family] = []
        self.shadows = WeakTensorKeyDictionary()
        self.block_weights: dict[nn.Module, Tensor] = {}
        seen: dict[Tensor, list[Family]] = {}
        for module, names in names_by_identity(model).items():
            for tensor_name, tensor in _tensors(module):
                if tensor in seen:
                    for family in seen[tensor]:
                        family.places.append(Place(module, tensor_name, family.dim))
                    continue
                dims = [d for d in range(tensor.dim()) if tensor.shape[d] > 1]
                if isinstance(module, nn.modules.conv._ConvNd) and tensor_name == "weight":
                    dims = [d for d in dims if d < 2]
                seen[tensor] = self._add(module, names[0], tensor_name, tensor, dims, table)
            if isinstance(module, CPDBlock):
                self._add_block(module, names[0], table)
        self._bases = torch.tensor([family.base for family in self.families] or [1])

    def _add(
        self, module: nn.Module, name: str, tensor_name: str, tensor: Tensor, dims: list[int], table: LabelTable
    ) -> list[Family]:
        families = []
        planes = []
        for d in dims:
            size = tensor.shape[d]
            family = Family(module, name, tensor_name, d, table.allocate(size), size, [Place(module, tensor_name, d)])
            families.append(family)
            planes.append(spread(as_labels(family.base, size), tensor.shape, d))
        self.families += families
        self.shadows[tensor] = Shadow(tuple(planes), True)
        return families

    def _add_block(self, block: CPDBlock, name: str, table: LabelTable) -> None:
        """A block is traced as the dense convolution it equals."""
        weight = block.weight.detach()
        dims = [d for d in (0, 1) if weight.shape[d] > 1]
        for family in self._add(block, name, "weight", weight, dims, table):
            factors = ("head", "vertical", "horizontal") if family.dim == 0 else ("head",)
            family.places = [Place(block, factor, 0 if family.dim == 0 else 2) for factor in factors]
        self.block_weights[block] = weight

    def family_of(self, labels: Tensor) -> Tensor:
        """Positions in ``families`` of labels."""
        return torch.searchsorted(self._bases, labels, right=True) - 1


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, torch.jit.ScriptModule):
        return
    for registry in (module._parameters, module._buffers):
        for name, tensor in registry.items():
            if isinstance(module, CPDBlock) and name != "bias":
                continue
            if tensor is not None and tensor.is_floating_point():
                yield name, tensor
