"""Which channels of a model belong together: Torch-Pruning's dependency graph, read into plain groups."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import SurgeryError
from norton_plugin.surgery.adapter import CPDBlockPruner

ROOT_TYPES = (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, CPDBlock)
# Children of an attention module whose width is tied to the number of heads.
_HEADED = re.compile(r"(to_)?(q|k|v|qk|kv|qkv)(_proj|_linear|_conv|_proj_weight)?|in_proj|query|key|value")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "heads", "nhead")

ForwardFunction = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Member:
    """One module of a group and the channels that belong to it.

    Attributes:
        module: The layer, or a bare parameter.
        name: Its dotted name.
        role: ``"out"`` (its filters), ``"in"`` (its input channels) or ``"both"`` (norms, depthwise convolutions).
        indices: Channels of the module, in the order of ``roots``.
        roots: The root channel of each.
    """

    module: nn.Module | nn.Parameter
    name: str
    role: str
    indices: tuple[int, ...]
    roots: tuple[int, ...]

    @property
    def depthwise(self) -> bool:
        """Whether this is a convolution with one filter per channel."""
        return 1 < getattr(self.module, "groups", 1) == getattr(self.module, "out_channels", 0)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that have to be removed together.

    Attributes:
        root: Name of the layer whose outputs number the group's channels.
        size: How many channels.
        channel_groups: Every one of so many equal parts loses the same channels (grouped convolutions, GroupNorm).
        members: All modules concerned.
        blocked: Why the group cannot be pruned, or None.
    """

    root: str
    size: int
    channel_groups: int
    members: tuple[Member, ...]
    blocked: str | None

    @property
    def producers(self) -> list[Member]:
        """Layers whose filters make these channels."""
        kinds = (nn.modules.conv._ConvNd, nn.Linear, CPDBlock)
        return [m for m in self.members if m.role == "out" and isinstance(m.module, kinds) and not m.depthwise]

    @property
    def consumers(self) -> list[Member]:
        """Layers that read these channels and mix them."""
        return [m for m in self.members if m.role == "in"]


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients for all parameters, as tracing needs it; exact flags come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        model.eval()
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def run_model(model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None = None) -> Any:
    """Calls the model on its example: a tensor, a tuple of positional or a dict of keyword arguments."""
    if forward_fn is not None:
        return forward_fn(model, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return model(*example_inputs)
    return model(example_inputs)


def output_tensors(output: Any) -> list[Tensor]:
    """All floating-point tensors of an output, whatever it is nested in."""
    leaves = tree_leaves(output)
    plain = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    for leaf in leaves:
        if not isinstance(leaf, Tensor) and hasattr(leaf, "__dict__"):
            plain += output_tensors(dict(vars(leaf)))
    return plain


class DependencyGraph:
    """The dependency graph of one model.

    Args:
        model: Traced in evaluation mode; its flags are restored.
        example_inputs: See ``run_model``.
        forward_fn: Replaces the plain call of the model.

    Raises:
        SurgeryError: The model cannot be run on the example, or cannot be traced.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, *, forward_fn: ForwardFunction | None = None) -> None:
        self.model = model
        self._graph = tp.DependencyGraph()

        def forward(module: nn.Module, inputs: Any) -> Any:
            return run_model(module, inputs, forward_fn)

        def mark_outputs(output: Any) -> list[Tensor]:
            # An extra operation per output: where a layer itself is last, the graph would otherwise not know that
            # its channels are the model's outputs.
            marked = [tensor * 1 for tensor in output_tensors(output) if tensor.grad_fn is not None]
            if not marked:
                raise ValueError("no output has a gradient: it is detached, or computed under torch.no_grad")
            return marked

        with traceable(model):
            try:
                self._graph.build_dependency(
                    model,
                    example_inputs=example_inputs,
                    forward_fn=forward,
                    output_transform=mark_outputs,
                    customized_pruners={CPDBlock: CPDBlockPruner()},
                    verbose=False,
                )
            except Exception as error:
                raise SurgeryError(
                    f"the model's channel dependencies cannot be traced ({type(error).__name__}: {error}); check "
                    "example_inputs, or leave pruning out of the recipe"
                ) from error

    def groups(self) -> list[ChannelGroup]:
        """All groups of coupled output channels, in the order of the graph."""
        return [self._read(group) for group in self._graph.get_all_groups(root_module_types=list(ROOT_TYPES))]

    def _read(self, group: tp.Group) -> ChannelGroup:
        members, reaches_output = [], False
        for item in group:
            node, handler = item.dep.target, item.dep.handler
            if node.type == tp.ops.OPTYPE.OUTPUT:
                reaches_output = True
            module = node.module
            if not isinstance(module, nn.Parameter) and module not in self._graph._module2name:
                continue
            member = Member(
                module,
                self._name(module),
                self._role(module, handler),
                tuple(int(i) for i in item.idxs),
                tuple(int(i) for i in item.root_idxs),
            )
            members.append(member)
        root = members[0]
        channel_groups, misaligned = _channel_groups(members, len(root.indices))
        blocked = None
        if reaches_output:
            blocked = "its channels are outputs of the model"
        elif misaligned:
            blocked = misaligned
        else:
            blocked = self._headed(members)
        return ChannelGroup(root.name, len(root.indices), channel_groups, tuple(members), blocked)

    def _name(self, module: nn.Module | nn.Parameter) -> str:
        if isinstance(module, nn.Parameter):
            return self._graph._param_to_name.get(module, "parameter")
        return self._graph._module2name[module]

    def _role(self, module: nn.Module | nn.Parameter, handler: Callable[..., Any]) -> str:
        is_in = self._graph.is_in_channel_pruning_fn(handler)
        is_out = self._graph.is_out_channel_pruning_fn(handler)
        return "both" if is_in and is_out else "out" if is_out else "in"

    def _headed(self, members: Sequence[Member]) -> str | None:
        """Attention projections keep their width: their channels are laid out by heads."""
        modules = dict(self.model.named_modules())
        for member in members:
            if member.role != "out" or not isinstance(member.module, nn.Module):
                continue
            parent, _, leaf = member.name.rpartition(".")
            counts = [getattr(modules.get(parent), key, None) for key in _HEAD_COUNTS]
            if any(isinstance(count, int) for count in counts) and _HEADED.fullmatch(leaf):
                return f"{member.name} is laid out by attention heads"
        return None

    def members_of(self, root: str, removed: Sequence[int]) -> tuple[Member, ...]:
        """The members concerned when these root channels go, each with its own indices."""
        return self._read(self._select(root, removed)).members

    def prune_(self, root: str, removed: Sequence[int]) -> None:
        """Removes root channels and all that is coupled to them, in place.

        Raises:
            SurgeryError: An index is out of range for some member; nothing is changed then.
        """
        group = self._select(root, removed)
        for item in group:
            module = item.dep.target.module
            if isinstance(module, nn.Parameter) or module not in self._graph._module2name:
                continue
            pruner = self._graph.get_pruner_of_module(module)
            out = self._graph.is_out_channel_pruning_fn(item.dep.handler)
            size = pruner.get_out_channels(module) if out else pruner.get_in_channels(module)
            indices = set(item.idxs)
            if size is not None and (not indices or min(indices) < 0 or max(indices) >= size or len(indices) >= size):
                raise SurgeryError(
                    f"{self._name(module)} has {size} channels; asked to remove {len(indices)} of them, "
                    f"from {min(indices)} to {max(indices)}"
                )
        flags = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        group.prune(record_history=False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(flags[name])

    def _select(self, root: str, removed: Sequence[int]) -> tp.Group:
        module = self.model.get_submodule(root)
        pruner = self._graph.get_pruner_of_module(module)
        return self._graph.get_pruning_group(module, pruner.prune_out_channels, sorted(int(i) for i in removed))

    def bookkeeping(self) -> list[dict[str, Any]]:
        """The mutable state of the graph itself, for an exact rollback: dicts whose values may be replaced."""
        nodes = list(self._graph.module2node)
        operations = [n for n in nodes if isinstance(n, nn.Module) and n not in self._graph._module2name]
        states = [entry.__dict__ for entry in (*operations, *self._graph.module2node.values())]
        return [self._graph.module2node, self._graph._param_to_name, *states]


def _channel_groups(members: Sequence[Member], size: int) -> tuple[int, str | None]:
    """In how many equal parts the group's channels must be treated alike, or why that cannot be done."""
    counts = 1
    for member in members:
        module = member.module
        parts, width = 1, size
        if isinstance(module, nn.GroupNorm):
            parts, width = module.num_groups, module.num_channels
        elif not member.depthwise and isinstance(module, nn.modules.conv._ConvNd | CPDBlock):
            parts, width = module.groups, module.in_channels if member.role == "in" else module.out_channels
        if parts == 1:
            continue
        if member.indices != member.roots or width != size:
            return 1, f"{member.name} has {parts} channel groups and reads only a part of these channels"
        counts = math.lcm(counts, parts)
    if size % counts:
        return 1, f"its {size} channels cannot be split evenly into the {counts} channel groups of its members"
    return counts, None
