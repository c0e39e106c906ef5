"""What holds for a block of every level: it is the convolution with the weight that its parameters stand for."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fuzzing.blocks import convolved
from fuzzing.verdict import Wrong, attempt
from norton_plugin.blocks import FORMS, CPDBlock, CPDLinear
from norton_plugin.blocks.convolutions import LAYERS
from norton_plugin.deploy import lower_block
from norton_plugin.surgery import apply_structure_
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import diff

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}  # relative to the largest number expected


@dataclass
class Drawn:
    """A layer, and apart from it what it was given.

    Attributes:
        block: The layer.
        factors: Head (K, R, C), those of the axes of the kernel, as vertical (K, R, Kh), and mix (N, R) or None.
        cluster: Of every filter, (N,).
    """

    block: CPDBlock | CPDLinear
    factors: dict[str, Tensor | None]
    cluster: Tensor

    def __post_init__(self) -> None:
        linear = isinstance(self.block, CPDLinear)
        names = ("out_features", "in_features") if linear else ("out_channels", "in_channels")
        self.dense_sizes = [getattr(self.block, name) for name in names]


def weight_of(factors: dict[str, Any], cluster: Tensor) -> Tensor:
    """Rebuild the weight filter by filter, by the definition: (N, C, Kh, Kw)."""
    filters = []
    for n, k in enumerate(cluster.tolist()):
        own = [factors[name][k] for name in components_of(factors)]
        axes = "cdhw" if len(own) == 4 else "chw"[: len(own)]
        terms = torch.einsum(f"{','.join(f'r{axis}' for axis in axes)}->r{axes}", *own)
        mix = torch.ones_like(own[0][:, 0]) if factors["mix"] is None else factors["mix"][n]
        filters.append(sum(m * term for m, term in zip(mix, terms, strict=True)))
    return torch.stack(filters)  # type: ignore[arg-type]


def components_of(factors: dict[str, Any]) -> list[str]:
    """Return the names of the factors of components, the head first."""
    return [name for name in factors if name != "mix"]


def close(found: Tensor | None, expected: Tensor) -> bool:
    """Tell whether two tensors agree up to rounding."""
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    largest = float(expected.detach().abs().max()) or 1.0
    return float((found - expected).detach().abs().max()) <= _TOLERANCE[expected.dtype] * largest


def check_forms(drawn: Drawn, x: Tensor) -> None:
    """Compare outputs and gradients of every form with those of the dense convolution, in both modes."""
    block: Any = drawn.block
    leaves = {k: None if v is None else v.clone().requires_grad_() for k, v in drawn.factors.items()}
    bias = None if block.bias is None else block.bias.detach().clone().requires_grad_()
    own = x.clone().requires_grad_()
    expected = convolved(block, own, weight_of(leaves, drawn.cluster), bias)
    expected.square().sum().backward()
    gradients = {name: None if leaf is None else leaf.grad for name, leaf in leaves.items()}
    gradients |= {"bias": None if bias is None else bias.grad}
    for form in FORMS:
        for training in (False, True):
            block.train(training)
            block.form, block.training_form = (FORMS[0], form) if training else (form, FORMS[0])
            x_own = x.clone().requires_grad_()
            block.zero_grad()
            output = attempt("forward", block, x_own).value
            if not close(output, expected):
                raise Wrong(f"form {form} differs from the dense convolution", f"{block}")
            if x.dtype != torch.float64:
                continue
            output.square().sum().backward()
            for name, gradient in {**gradients, "input": own.grad}.items():
                found = x_own if name == "input" else getattr(block, name)
                if found is not None and not close(found.grad, gradient):  # type: ignore[arg-type]
                    raise Wrong(f"form {form}: another gradient of {name}", f"{block}")
    block.eval()


def check_lowering(drawn: Drawn, x: Tensor) -> None:
    """Compare what every form is lowered to with the dense convolution."""
    block: Any = drawn.block
    expected = convolved(block, x, weight_of(drawn.factors, drawn.cluster), block.bias)
    for form in FORMS:
        lowered = attempt("lower_block", lower_block, block, form).value
        if not close(lowered(x), expected):
            raise Wrong(f"form {form} is lowered to something else", f"{block}")


def _like(block: CPDBlock | CPDLinear, filters: int, channels: int) -> nn.Module:
    """Return a dense layer whose place the block may have taken."""
    kind: dict[str, Any] = {"bias": block.bias is not None, "dtype": block.head.dtype}
    if isinstance(block, CPDLinear):
        return nn.Sequential(nn.Linear(channels, filters, **kind))
    padding = 0 if block.padding == "dynamic_same" else block.padding
    settings = (block.kernel_size, block.stride, padding, block.dilation, block.groups)
    return nn.Sequential(
        LAYERS[len(block.kernel_size)](channels, filters, *settings, padding_mode=block.padding_mode, **kind)
    )


def check_stored(drawn: Drawn, x: Tensor, arguments: dict[str, Any]) -> None:
    """Bring the block back from its state dict, a deep copy, and the structure as JSON."""
    block = drawn.block
    expected = block(x)
    state = copy.deepcopy(block.state_dict())
    copies = [copy.deepcopy(block)]
    if isinstance(block, CPDBlock):
        copies.append(type(block)(**arguments).eval())
        copies[-1].form, copies[-1].training_form = block.form, block.training_form  # type: ignore[union-attr]
    dense = _like(block, *drawn.dense_sizes)
    structure = json.loads(json.dumps(diff(geometry(dense), geometry(nn.Sequential(block)))))
    if attempt("apply_structure_", apply_structure_, dense, structure).refused:
        raise Wrong("a sound structure was refused", f"{structure['modules']} for {dense}")
    copies.append(dense.eval()[0])  # type: ignore[index]
    for other in copies:
        other.load_state_dict(state, strict=True)
        if repr(other) != repr(block) or not torch.equal(other(x), expected):
            raise Wrong("a stored block computes something else", f"{block} came back as {other}")


def check_select(rng: random.Random, drawn: Drawn, x: Tensor) -> None:
    """Keep some filters, then some channels, then some components, and compare with the same parts of the weight."""
    block: Any = drawn.block
    for axis in rng.sample(("filters", "channels", "components"), 3):
        _select(rng, drawn, axis)
        weight = weight_of(drawn.factors, drawn.cluster)
        if not close(block.weight, weight) or block.out_channels != len(weight):
            raise Wrong(f"select_ on {axis} keeps something else", f"{block}")
        if block.slot is not None and block.cluster_size < int(block.cluster.bincount().max()):
            raise Wrong(f"select_ on {axis} leaves too few places", f"{block}")
        if block.components != block.head.shape[0] * block.head.shape[1]:
            raise Wrong(f"select_ on {axis} leaves wrong sizes", f"{block}")
        if axis == "filters":
            _check_unused(drawn)
        channel = -1 - len(block.kernel_size)
        within = x.unflatten(channel, (block.groups, -1)).narrow(channel, 0, weight.shape[1])
        x = within.flatten(channel - 1, channel)
        if not close(block(x), convolved(block, x, weight, block.bias)):
            raise Wrong(f"after select_ on {axis} the block differs from the convolution", f"{block}")
    for wrong, where in ([], axis), ([10**6], axis), ([-1], axis), ([0], "rank"):
        if not attempt("select_", block.select_, wrong, where).refused:
            raise Wrong("select_ took what is not there", f"{wrong} {where}")
    check_stored(drawn, x, _arguments(block))
    check_lowering(drawn, x)


def _arguments(block: CPDBlock) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "rank", "stride", "padding", "dilation", "groups")
    shared = {} if block.mix is None else {"clusters": block.clusters, "cluster_size": block.cluster_size}
    own = {name: getattr(block, name) for name in (*names, "padding_mode")}
    return {**own, **shared, "bias": block.bias is not None, "dtype": block.head.dtype}


def _select(rng: random.Random, drawn: Drawn, axis: str) -> None:
    """Select from the block and, by the definition, from what it was given."""
    block: Any = drawn.block
    factors, groups = drawn.factors, block.groups
    bias = None if block.bias is None else block.bias.detach().clone()
    if axis == "filters":
        within = block.out_channels // groups
        count = rng.randint(1, within)
        keep = [g * within + n for g in range(groups) for n in sorted(rng.sample(range(within), count))]
        names = components_of(factors) if factors["mix"] is None else ["mix"]
        for name in names:
            factors[name] = factors[name][keep]  # type: ignore[index]
        drawn.cluster = torch.arange(len(keep)) if factors["mix"] is None else drawn.cluster[keep]
        bias = None if bias is None else bias[keep]
    elif axis == "channels":
        keep = sorted(rng.sample(range(block.head.shape[2]), rng.randint(1, block.head.shape[2])))
        factors["head"] = factors["head"][:, :, keep]  # type: ignore[index]
    else:
        rank = block.rank
        count = rng.randint(1, rank)
        keep = [k * rank + r for k in range(block.clusters) for r in sorted(rng.sample(range(rank), count))]
        _follow(drawn)
        factors = drawn.factors
        places = torch.tensor(keep).view(block.clusters, count) % rank
        for name in components_of(factors):
            own: Any = factors[name]
            factors[name] = torch.stack([rows[place] for rows, place in zip(own, places, strict=True)])
        if factors["mix"] is not None:
            rows = zip(factors["mix"], drawn.cluster, strict=True)
            factors["mix"] = torch.stack([row[places[k]] for row, k in rows])
    if axis == "components":
        rng.shuffle(keep)
    attempt("select_", block.select_, keep, axis)
    if bias is not None and not torch.equal(block.bias, bias):
        raise Wrong(f"select_ on {axis} keeps other biases", f"{block}")


def _follow(drawn: Drawn) -> None:
    """Take over the numbers of clusters and components, which a cut of filters may have lowered."""
    block: Any = drawn.block
    if block.mix is None:
        return
    weight = weight_of(drawn.factors, drawn.cluster)
    found = block.factors
    drawn.factors = {k: v.detach().clone() for k, v in found._asdict().items() if k != "cluster"}
    drawn.cluster = block.cluster.clone()
    if not close(weight_of(drawn.factors, drawn.cluster), weight):
        raise Wrong("the factors of a cut block stand for another weight", f"{block}")


def _check_unused(drawn: Drawn) -> None:
    """Check that clusters and components that no filter uses are gone where filters were cut."""
    block: Any = drawn.block
    if block.mix is None or block.groups > 1:
        return
    if block.clusters > 1 and sorted(set(block.cluster.tolist())) != list(range(block.clusters)):
        raise Wrong("clusters without filters stay", f"{block} {block.cluster.tolist()}")
