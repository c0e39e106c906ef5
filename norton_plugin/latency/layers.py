"""Layers by what decides how long they take, and the same layers in other sizes, with random values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.blocks.clusters import even_clusters, slots_of
from norton_plugin.deploy import lower_block
from norton_plugin.modules.running import ForwardFunction, run_model, traceable
from norton_plugin.surgery.contract import ConvContract, LinearContract, read_contract, read_linear
from norton_plugin.surgery.decompose import block_from_contract
from norton_plugin.surgery.layouts import Layout, LayoutLevel

Contract = ConvContract | LinearContract
Shape = tuple[int, ...]


@dataclass(frozen=True)
class TimedLayer:
    """A layer and what it is called with.

    Attributes:
        contract: What it computes.
        inputs: Shape of each input and how often it came.
    """

    contract: Contract
    inputs: Mapping[Shape, int]

    def cut(self, filters: int, channels: int) -> TimedLayer:
        """Return it with fewer filters, and with fewer channels that one filter sees; a depthwise one loses groups."""
        contract, weight = self.contract, self.contract.weight
        if (filters, channels) == tuple(weight.shape[:2]):
            return self
        smaller: Contract = replace(contract, weight=weight[:filters, :channels])
        axis, width = -1, channels
        if isinstance(smaller, ConvContract):
            depthwise = smaller.groups > 1 and weight.shape[1] == 1
            groups = max(1, smaller.groups * filters // len(weight)) if depthwise else smaller.groups
            axis, width = -1 - len(smaller.kernel_size), channels * groups
            smaller = replace(smaller, groups=groups, in_channels=width)
        inputs = {(*shape[:axis], width, *shape[len(shape) + axis + 1 :]): n for shape, n in self.inputs.items()}
        return TimedLayer(smaller, inputs)

    def key(self, shape: Shape) -> str:
        """Return what decides the time of a call, in words: equal keys take equally long."""
        weight = self.contract.weight
        size = "x".join(map(str, shape))
        kind = str(weight.dtype).removeprefix("torch.")
        if isinstance(self.contract, LinearContract):
            return f"linear {weight.shape[1]} to {weight.shape[0]} on {size} {kind}"
        own = self.contract
        kernel, stride, dilation = ("x".join(map(str, pair)) for pair in (own.kernel_size, own.stride, own.dilation))
        padding = "x".join(map(str, own.padding)) if isinstance(own.padding, tuple) else own.padding
        return (
            f"conv {own.in_channels} to {len(weight)} kernel {kernel} stride {stride} padding {padding} "
            f"{own.padding_mode} dilation {dilation} groups {own.groups} on {size} {kind}"
        )

    def example(self, shape: Shape) -> Tensor:
        """Return a random input."""
        weight = self.contract.weight
        return torch.randn(shape, device=weight.device).to(weight.dtype)


def timed_layers(
    model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None = None
) -> dict[str, TimedLayer]:
    """Run a model once and return its convolutions and Linear layers that a block could stand for.

    Args:
        model: In any mode; left as it is.
        example_inputs: See ``modules.running.run_model``.
        forward_fn: Likewise.

    Returns:
        By the first dotted name; layers that the example does not reach are absent, and those whose weight or forward
        pass is their own.
    """
    contracts = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            contract = read_linear(module) if isinstance(module, nn.Linear) else read_contract(module)
            if isinstance(contract, Contract):
                contracts[name] = contract
    seen: dict[str, Counter[Shape]] = {}
    with ExitStack() as stack:
        for name in contracts:

            def remember(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if inputs and inputs[0].numel():
                    seen.setdefault(name, Counter())[tuple(inputs[0].shape)] += 1

            stack.callback(model.get_submodule(name).register_forward_pre_hook(remember).remove)
        with traceable(model):
            run_model(model, example_inputs, forward_fn)
    return {name: TimedLayer(contract, dict(seen[name])) for name, contract in contracts.items() if name in seen}


def random_block(contract: Contract, layout: Layout, *, like: nn.Module | None = None) -> ConvBlock | CPDLinear:
    """Return a block with random factors whose weight is as large as the layer's: it takes as long as a fitted one.

    Args:
        contract: Of the layer.
        layout: Level, clusters and rank.
        like: The module whose training flag and ``requires_grad`` are taken over.
    """
    block: Any = block_from_contract(contract, layout, like=like)
    with torch.no_grad():
        if isinstance(block, CPDBlock) and block.slot is not None:
            clusters = even_clusters(block.out_channels, block.clusters)
            block.slot.copy_(slots_of(clusters, block.clusters, size=block.cluster_size)[0])
        if isinstance(block, SpatialSVDBlock):
            block.number_groups_()
        block.reset_parameters()
        if block.bias is not None:
            block.bias.copy_(contract.bias)
        last = block.horizontal if getattr(block, "mix", None) is None else block.mix
        own, wanted = block.weight.norm(), contract.weight.norm()
        if float(own) > 0 and float(wanted) > 0:
            last.mul_(wanted / own)
    return block


def with_bias(contract: Contract) -> Contract:
    """Return the contract of a layer into which the norm behind it is folded."""
    weight = contract.weight
    return replace(contract, bias=torch.zeros(len(weight), device=weight.device, dtype=weight.dtype))


def dense_layer(contract: Contract) -> nn.Module:
    """Return the layer itself as a plain module, its padding done as by a lowered block."""
    groups = contract.groups if isinstance(contract, ConvContract) else 1
    level: LayoutLevel = "spatial" if isinstance(contract, ConvContract) and len(contract.kernel_size) == 2 else "layer"
    return lower_block(random_block(contract, Layout(level, groups, 1)), "dense").eval()
