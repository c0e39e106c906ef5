"""Target: spatial SVDs of convolutions, against the convolution with the rebuilt weight and against torch's SVD."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fuzzing.blocks import convolved, geometry, input_of
from fuzzing.level_checks import close
from fuzzing.target import Target
from fuzzing.verdict import OK, Result, Wrong, attempt, note
from norton_plugin.blocks import SpatialSVDBlock
from norton_plugin.cost import count_cost
from norton_plugin.cpd import full_spatial_rank
from norton_plugin.deploy import lower_block
from norton_plugin.surgery import apply_structure_, from_conv
from norton_plugin.surgery.geometry import geometry as model_geometry
from norton_plugin.surgery.structure import diff
from norton_plugin.surgery.structure_entries import read_entries

_AXES = ("filters", "channels", "components")


def prepare(folder: Path) -> None:
    """Nothing is shared."""


def run(state: None, rng: random.Random, number: int) -> Result:
    """Hold one random block against its dense weight, in everything that is done to blocks."""
    torch.manual_seed(rng.getrandbits(32))
    arguments = {**geometry(rng), "dtype": rng.choice((torch.float64, torch.float64, torch.float32))}
    channels, filters = (arguments[name] // arguments["groups"] for name in ("in_channels", "out_channels"))
    given = arguments["kernel_size"]
    kernel = given if isinstance(given, tuple) else (given, given)
    arguments["rank"] = rng.randint(1, full_spatial_rank(filters, channels, kernel))
    block = SpatialSVDBlock(**arguments)
    if rng.random() < 0.3:  # components that only some filters use, or none
        block.horizontal.data *= torch.rand_like(block.horizontal[..., :1]) < 0.6
    note(f"{block} {arguments}")
    x = input_of(rng, block).to(arguments["dtype"])  # type: ignore[arg-type]
    _check_block(block, x)
    _check_macs(block, x)
    _check_decomposition(block)
    widths = block.in_channels, block.out_channels
    _check_stored(block, x, widths)
    for axis in rng.sample(_AXES, 3):
        _check_select(rng, block, axis)
        x = x.unflatten(-3, (block.groups, -1))[..., : block.vertical.shape[1], :, :].flatten(-4, -3)
        _check_block(block, x)
    for wrong, where in ([], "filters"), ([10**6], "channels"), ([-1], "components"), ([0], "rank"):
        if not attempt("select_", block.select_, wrong, where).refused:
            raise Wrong("select_ took what is not there", f"{wrong} {where}")
    _check_stored(block, x, widths)
    return OK


def weight_of(vertical: Tensor, horizontal: Tensor, groups: int) -> Tensor:
    """Rebuild the weight filter by filter, by the definition: (N, C, Kh, Kw)."""
    filters, rank, _ = horizontal.shape
    firsts = [n * groups // filters * rank for n in range(filters)]
    terms = [
        torch.einsum("rch,rw->chw", vertical[first : first + rank], row)
        for first, row in zip(firsts, horizontal, strict=True)
    ]
    return torch.stack(terms)


def _check_block(block: Any, x: Tensor) -> None:
    """Compare outputs and gradients of both forms, and what they are lowered to, with the dense convolution."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in block.named_parameters()}
    own = x.clone().requires_grad_()
    weight = weight_of(leaves["vertical"], leaves["horizontal"], block.groups)
    if not close(block.weight, weight):
        raise Wrong("the weight is not that of the factors", f"{block}")
    expected = convolved(block, own, weight, leaves.get("bias"))
    expected.square().sum().backward()
    for form in block.forms:
        for training in (False, True):
            block.train(training)
            block.form, block.training_form = (block.forms[0], form) if training else (form, block.forms[0])
            block.zero_grad()
            x_own = x.clone().requires_grad_()
            output = attempt("forward", block, x_own).value
            if not close(output, expected):
                raise Wrong(f"form {form} differs from the dense convolution", f"{block}")
            output.square().sum().backward()
            for name, leaf in {**leaves, "input": own}.items():
                found = x_own if name == "input" else getattr(block, name)
                if x.dtype == torch.float64 and not close(found.grad, leaf.grad):  # type: ignore[arg-type]
                    raise Wrong(f"form {form}: another gradient of {name}", f"{block}")
        if not close(attempt("lower_block", lower_block, block, form).value(x), expected):
            raise Wrong(f"form {form} is lowered to something else", f"{block}")
    block.eval().zero_grad()


def _check_macs(block: SpatialSVDBlock, x: Tensor) -> None:
    """Compare what is counted with the numbers of the two weights times the positions that they are used at."""
    images = x if x.dim() == 4 else x[None]
    _, _, height, width = convolved(block, images, block.weight, None).shape  # type: ignore[arg-type]
    counted = count_cost(nn.Sequential(block), lambda: block(images)).macs
    before, after = images.shape[3], width
    if block.padding in ("same", "dynamic_same") or block.padding_mode != "zeros":
        return  # the map is padded before it is read
    padded_rows = block.vertical.numel() * height * before + block.horizontal.numel() * height * after
    if counted != len(images) * padded_rows:
        raise Wrong("other MACs than the two convolutions have", f"{block}: {counted}, not {padded_rows}")


def _check_decomposition(block: SpatialSVDBlock) -> None:
    """Compare the decomposition of a random convolution with the singular values of its groups."""
    settings = (block.kernel_size, block.stride, 0, block.dilation, block.groups)
    conv = nn.Conv2d(block.in_channels, block.out_channels, *settings, dtype=torch.float64)
    found = attempt("from_conv", from_conv, conv, level="spatial", components=block.components).value
    groups = conv.weight.detach().chunk(block.groups)
    matrices = [group.permute(1, 2, 0, 3).flatten(2).flatten(0, 1) for group in groups]
    lost = sum(float(torch.linalg.svdvals(matrix)[block.rank :].square().sum()) for matrix in matrices)
    error = float((found.weight - conv.weight).detach().square().sum())
    pointwise = block.kernel_size == (1, 1)
    if abs(error - lost) > 1e-9 * float(conv.weight.detach().square().sum()) or pointwise == (found.level == "spatial"):
        raise Wrong("from_conv does not give the best factors", f"{found}: {error}, not {lost}")


def _check_stored(block: SpatialSVDBlock, x: Tensor, widths: tuple[int, int]) -> None:
    """Bring the block back from its state dict, a deep copy, and the structure as JSON."""
    padding = 0 if block.padding == "dynamic_same" else block.padding
    settings = (block.kernel_size, block.stride, padding, block.dilation, block.groups)
    kind: dict[str, Any] = {"bias": block.bias is not None, "dtype": x.dtype, "padding_mode": block.padding_mode}
    dense = nn.Sequential(nn.Conv2d(*widths, *settings, **kind))
    structure = json.loads(json.dumps(diff(model_geometry(dense), model_geometry(nn.Sequential(block)))))
    if attempt("apply_structure_", apply_structure_, dense, structure).refused:
        raise Wrong("a sound structure was refused", f"{structure['modules']} for {dense}")
    state, expected = copy.deepcopy(block.state_dict()), block(x)
    if read_entries(structure)[0].shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise Wrong("the structure names other shapes", f"{structure['modules']}")
    for other in (copy.deepcopy(block), dense.eval()[0]):
        other.load_state_dict(state, strict=True)
        if repr(other) != repr(block) or not torch.equal(other(x), expected):
            raise Wrong("a stored block computes something else", f"{block} came back as {other}")


def _check_select(rng: random.Random, block: SpatialSVDBlock, axis: str) -> None:
    """Keep some positions, as many in each group, and compare with the same part of the weight."""
    groups, rank = block.groups, block.rank
    each = {"filters": block.out_channels // groups, "channels": block.vertical.shape[1], "components": rank}[axis]
    kept = sorted(rng.sample(range(each), rng.randint(1, each)))
    keep = kept if axis == "channels" else [group * each + place for group in range(groups) for place in kept]
    vertical, horizontal = block.vertical.detach(), block.horizontal.detach()
    bias = None if block.bias is None else block.bias.detach()
    if axis == "filters":
        horizontal, bias = horizontal[keep], None if bias is None else bias[keep]
    elif axis == "channels":
        vertical = vertical[:, keep]
    else:
        vertical, horizontal = vertical[keep], horizontal[:, kept]
        rng.shuffle(keep)
    attempt("select_", block.select_, keep, axis)
    if not close(block.weight, weight_of(vertical, horizontal, groups)):
        raise Wrong(f"select_ on {axis} keeps something else", f"{keep} of {block}")
    used = int((block.horizontal.detach() != 0).any(2).view(groups, -1, block.rank).any(1).sum(1).max())
    if axis == "filters" and block.rank > max(1, used):
        raise Wrong("components without use stay", f"{block}")
    if bias is not None and not torch.equal(block.bias, bias):  # type: ignore[arg-type]
        raise Wrong(f"select_ on {axis} keeps other biases", f"{block}")


TARGET = Target(
    name="spatial",
    about="spatial SVDs in random geometries, against the dense convolution and against torch's singular values",
    cases=400,
    prepare=prepare,
    run=run,
    seconds=60.0,
)
