"""Labels written out by hand, followed through one function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.channels import ChannelLabels
from norton_plugin.channels.deadline import Deadline
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.provenance import SizeProvenance
from norton_plugin.channels.tensor_axes import AxisTable
from norton_plugin.channels.trace import Trace
from norton_plugin.channels.tracer import Tracer


@dataclass
class Followed:
    """What became of labels.

    Attributes:
        maps: Of each output tensor, its label maps as lists, without dimensions of size 1.
        unions: The classes of more than one label, as sorted lists.
        pins: Label -> code of the reason, for all labels whose class must stay.
        trace: All else.
    """

    maps: list[list[Any]]
    unions: list[list[int]]
    pins: dict[int, str]
    trace: Trace


def classes_of(table: LabelTable) -> tuple[list[list[int]], dict[int, str]]:
    """Return the classes of more than one label, and the code of the reason of every pinned label."""
    classes = table.resolve()
    members: dict[int, list[int]] = {}
    for label, representative in enumerate(classes.class_of.tolist()):
        members.setdefault(representative, []).append(label)
    pins = {i: classes.reasons[p - 1].code for i, p in enumerate(classes.pinned.tolist()) if p}
    return sorted(group for group in members.values() if len(group) > 1), pins


def follow(
    function: Callable[..., Any], *operands: tuple[Tensor, Tensor | None], module: nn.Module | None = None
) -> Followed:
    """Run ``function(*operands)`` under a trace.

    Args:
        function: Any code.
        operands: Tensors, each with its label map (None: it has no channels).
        module: Its parameters have the labels 1, 2, ... in their order; labels of operands have to be larger.
    """
    table = LabelTable()
    trace = Trace(AxisTable(module or nn.Module(), table), table)
    for x, label_map in operands:
        if label_map is not None:
            assert label_map.shape == x.shape
            table.size = max(table.size, int(label_map.max()) + 1)
        trace.set_labels(x, ChannelLabels(() if label_map is None else (label_map,), False))
    tracer = Tracer(trace, Deadline())
    with torch.no_grad(), SizeProvenance(tracer), tracer:
        out = function(*(x for x, _ in operands))
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    maps = [[label_map.squeeze().tolist() for label_map in trace.labels_of(tensor).maps] for tensor in outputs]
    return Followed(maps, *classes_of(table), trace)


def row(*labels):
    """A (1, n) tensor with these labels along dimension 1."""
    return torch.ones(1, len(labels)), torch.tensor([labels])


def grid(labels):
    """A tensor with one label per element."""
    label_map = torch.tensor(labels)
    return torch.ones(label_map.shape), label_map


def pixels(*labels, size=1):
    """A (1, n, size, size) map with these labels along dimension 1."""
    x = torch.arange(1.0, 1 + len(labels) * size * size).view(1, len(labels), size, size)
    return x, torch.tensor(labels).view(1, -1, 1, 1).expand(x.shape)


def plain(*shape):
    """A tensor without channels."""
    return torch.ones(shape), None


def pinned(code, *labels):
    return dict.fromkeys(labels, code)
