"""Target: blocks whose filters share components, at every level, against the convolution with the rebuilt weight."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fuzzing.blocks import drawn_axes, geometry, input_of
from fuzzing.level_checks import Drawn, check_forms, check_lowering, check_select, check_stored
from fuzzing.target import Target
from fuzzing.verdict import OK, Result, Wrong, note
from norton_plugin.blocks import CPD_BLOCKS, CPDBlock, CPDLinear
from norton_plugin.cpd import CoupledFactors, CPDFactors, full_components
from norton_plugin.deploy import lower_block


def prepare(folder: Path) -> None:
    """Nothing is shared."""


def run(state: None, rng: random.Random, number: int) -> Result:
    """Hold one random layer against its dense weight, in everything that is done to layers."""
    torch.manual_seed(rng.getrandbits(32))
    if rng.random() < 0.12:
        return _linear_case(rng)
    drawn, arguments = _drawn(rng)
    note(f"{drawn.block} slots {drawn.block.slot} {arguments}")
    x = input_of(rng, drawn.block).to(drawn.block.head.dtype)
    check_forms(drawn, x)
    check_lowering(drawn, x)
    check_stored(drawn, x, arguments)
    check_select(rng, drawn, x)
    return OK


def _drawn(rng: random.Random) -> tuple[Drawn, dict[str, Any]]:
    """Draw a block of any level, and the parameters that it was given."""
    axes = drawn_axes(rng)
    arguments = {**geometry(rng, axes), "dtype": rng.choice((torch.float64, torch.float64, torch.float32))}
    if rng.random() < 0.2:
        arguments["kernel_size"] = 1
    groups, filters = arguments["groups"], arguments["out_channels"]
    channels = arguments["in_channels"] // groups
    given = arguments["kernel_size"]
    kernel = given if isinstance(given, tuple) else (given,) * axes
    level = rng.choice(("filter", "layer", "cluster", "cluster", "cluster"))
    if level == "filter":
        arguments["rank"] = rng.randint(1, math.prod(kernel))
        block = CPD_BLOCKS[axes](**arguments)
        own = CPDFactors(*(p.detach().clone() for p in (block.head, *block.kernel)))
        return Drawn(block, {**own._asdict(), "mix": None}, torch.arange(filters)), arguments
    each = 1 if level == "layer" else rng.randint(1, filters // groups)
    cluster = _cluster(rng, filters=filters, groups=groups, each=each)
    size = max(int(cluster.bincount().max()), -(-filters // (groups * each)))
    spare = rng.random() < 0.2
    arguments |= {"clusters": groups * each, "cluster_size": min(filters, size + spare)}
    arguments["rank"] = rng.randint(1, min(full_components(-(-filters // (groups * each)), channels, kernel), 5))
    block = CPD_BLOCKS[axes](**arguments)
    factors = _factors(rng, block, cluster, kernel)
    block.set_factors(factors)
    if not torch.equal(block.cluster, cluster):
        raise Wrong("set_factors put filters into other clusters", f"{block.cluster.tolist()} for {cluster.tolist()}")
    return Drawn(block, {k: v.clone() for k, v in factors._asdict().items() if k != "cluster"}, cluster), arguments


def _cluster(rng: random.Random, *, filters: int, groups: int, each: int) -> Tensor:
    """Sort filters into clusters of any sizes, some of which may stay empty; none in another group than its filters."""
    within = filters // groups
    if rng.random() < 0.3:
        run = [place * each // within for place in range(within)]
        return torch.tensor([group * each + k for group in range(groups) for k in run])
    return torch.tensor([(n // within) * each + rng.randrange(each) for n in range(filters)])


def _factors(rng: random.Random, block: CPDBlock, cluster: Tensor, kernel: tuple[int, ...]) -> CoupledFactors:
    k, r, c = block.head.shape
    kind: dict[str, Any] = {"dtype": block.head.dtype}
    own = [torch.randn(k, r, n, **kind) if block.kernel else torch.ones(k, r, 1, **kind) for n in kernel]
    mix = torch.randn(len(cluster), r, **kind)
    if rng.random() < 0.4:
        mix *= torch.rand(mix.shape) < 0.6  # components that only some filters use, or none
    return CoupledFactors(torch.randn(k, r, c, **kind), *own, mix, cluster)


def _linear_case(rng: random.Random) -> Result:
    features, outputs = rng.randint(1, 9), rng.randint(1, 9)
    components = rng.randint(1, min(features, outputs))
    layer = CPDLinear(features, outputs, components, bias=rng.random() < 0.5, dtype=torch.float64)
    note(f"{layer}")
    head, mix = (p.detach().clone().requires_grad_() for p in (layer.head, layer.mix))
    bias = None if layer.bias is None else layer.bias.detach().clone()
    shape = rng.choice(((features,), (3, features), (2, 3, features)))
    x = torch.randn(shape, dtype=torch.float64)
    expected = nn.functional.linear(x, mix @ head, bias)
    expected.square().sum().backward()
    found = layer(x)
    found.square().sum().backward()
    for name, one, other in (
        ("output", found, expected),
        ("gradient of the head", layer.head.grad, head.grad),
        ("gradient of the mix", layer.mix.grad, mix.grad),
        ("output after lowering", lower_block(layer)(x), expected),
    ):
        if one is None or other is None or not torch.allclose(one, other, rtol=1e-10, atol=1e-12):
            raise Wrong(f"CPDLinear: {name} differs from the dense layer", f"{layer}")
    check_stored(Drawn(layer, {}, torch.arange(outputs)), x, {})
    axis, size = rng.choice((("filters", outputs), ("channels", features), ("components", components)))
    keep = sorted(rng.sample(range(size), rng.randint(1, size)))
    weight = (mix @ head).detach()
    index = torch.tensor(keep)
    if axis == "components":
        expected = (mix[:, index] @ head[index]).detach()
    else:
        expected = weight.index_select(0 if axis == "filters" else 1, index)
    layer.select_(keep, axis)
    if not torch.allclose(layer.weight, expected, rtol=1e-10, atol=1e-12):
        raise Wrong(f"CPDLinear: select_ on {axis} keeps something else", f"{keep} of {size}")
    if (layer.out_features, layer.in_features) != tuple(expected.shape) or layer.components != len(layer.head):
        raise Wrong("CPDLinear: sizes do not follow select_", f"{layer} for {tuple(expected.shape)}")
    return OK


TARGET = Target(
    name="levels",
    about="blocks whose filters share components, in random geometries and clusters, against the dense convolution",
    cases=600,
    prepare=prepare,
    run=run,
    seconds=60.0,
)
