"""What torch-pruning's dependency graph does with small networks that follow patterns of timm and mmdet.

Every network is pruned of two channels of its first convolution by torch-pruning alone and by this project; the pruned
network is compared with the unpruned one whose channels are masked. Written to ``upstream.json``, from which
``docs/coverage.md`` quotes.

    python tools/benchmarks/upstream.py --output docs/results
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from norton_plugin import NortonError
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_

WIDTH = 8
EXAMPLE = (1, 3, 16, 16)


class Network(nn.Module):
    """A first convolution, a pattern, a last convolution."""

    def __init__(self, pattern: Callable[[Network, Tensor], Tensor], *, inner: int = WIDTH) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.left, self.right = nn.Conv2d(inner, 6, 3, padding=1), nn.Conv2d(WIDTH - inner or inner, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.scale = nn.Parameter(torch.rand(1, WIDTH, 1, 1) + 0.5)
        self.dense = nn.Linear(WIDTH * 4, 6)
        self.register_buffer("blur", torch.full((WIDTH, 1, 3, 3), 1 / 9))
        self.pattern = pattern

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to whatever the pattern yields."""
        return self.pattern(self, self.first(x))


def _norm_without_bias() -> Network:
    net = Network(lambda net, x: net.left(net.norm(x)))
    net.norm.register_parameter("bias", None)
    return net


def _split(first: int, *, swapped: bool) -> Network:
    def pattern(net: Network, x: Tensor) -> Tensor:
        a, b = x.split(net.sections, 1)
        return net.right(b) + net.left(a) if swapped else net.left(a) + net.right(b)

    net = Network(pattern, inner=first)
    net.sections = first if first * 2 == WIDTH else [first, WIDTH - first]  # type: ignore[assignment]
    return net


def _shuffle() -> Network:
    net = Network(lambda net, x: net.left(x.view(-1, 2, net.part_width, 16, 16).transpose(1, 2).flatten(1, 2)))
    net.part_width = WIDTH // 2  # type: ignore[assignment]
    return net


@dataclass(frozen=True)
class Case:
    """A pattern, where it occurs, and what goes wrong in the dependency graph."""

    name: str
    seen_in: str
    cause: str
    build: Callable[[], Network]


CASES = (
    Case(
        "BatchNorm without a bias",
        "poolformer, levit",
        "BatchnormPruner slices `bias` whenever `affine` is set",
        _norm_without_bias,
    ),
    Case(
        "split into parts of one size, used in order",
        "res2net, cspnet, skresnet",
        "the attribute that holds the size is not rewritten, and torch 2.11 names the saved attribute "
        "`_saved_self_sym_sizes`, where index_mapping and shape_infer still read `_saved_self_sizes`",
        lambda: _split(4, swapped=False),
    ),
    Case(
        "the same, used in the opposite order",
        "res2net, cspnet, skresnet",
        "outputs of a split are told apart by the order of traversal, not by their index",
        lambda: _split(4, swapped=True),
    ),
    Case(
        "split into parts of given sizes",
        "mixnet, ghostnet, convnext-like gates",
        "attributes that hold sizes are not rewritten",
        lambda: _split(2, swapped=False),
    ),
    Case(
        "a blur kernel in a buffer",
        "resnetblur, tresnet",
        "buffers are not sliced with their channels",
        lambda: Network(lambda net, x: net.left(F.conv2d(x, net.blur, groups=x.shape[1], padding=1))),
    ),
    Case(
        "sizes from attributes in a view",
        "windows and heads of transformers, channel shuffle",
        "attributes that hold sizes are not rewritten",
        _shuffle,
    ),
    Case(
        "flatten with channels last",
        "split attention, SK, token mixers",
        "a flattened dimension is taken to be channel-major: wrong columns go, without an error",
        lambda: Network(lambda net, x: net.dense(F.adaptive_avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1))),
    ),
)


def by_torch_pruning(net: Network, example: Tensor) -> str:
    """Return what two channels fewer do to the network in torch-pruning."""
    masked = copy.deepcopy(net)
    try:
        graph = tp.DependencyGraph().build_dependency(net, example_inputs=example)
        graph.get_pruning_group(net.first, tp.prune_conv_out_channels, idxs=[0, 1]).prune()
        with torch.no_grad():
            masked.first.weight[:2], masked.first.bias[:2] = 0, 0  # type: ignore[index]
            actual, expected = net(example), masked(example)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
    if actual.shape != expected.shape:
        return f"outputs of another shape, {tuple(actual.shape)}"
    difference = float((actual - expected).abs().max() / expected.abs().max())
    return "correct" if difference < 1e-4 else f"wrong outputs: off by {100 * difference:.0f} %"


def by_this_project(net: Network, example: Tensor) -> str:
    """Return what this project does with it: pruned and verified, or left with a reason."""
    try:
        report = prune_(net, example, Pruning(keeps={"first": 0.75}, round_to=1))
    except NortonError as error:
        return f"left alone: {error}"
    group = next((g for g in report.groups if "first" in g.members), None)
    if group is None:
        return "left alone: " + next(s.reason for s in report.skipped if "first" in s.name)
    return f"{group.before} to {group.after} channels, error {group.error:.0e}"


def main() -> None:
    """Parse the arguments, run all cases and write ``upstream.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for upstream.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in CASES:
        torch.manual_seed(0)
        net, example = case.build().eval(), torch.randn(EXAMPLE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = by_torch_pruning(copy.deepcopy(net), example)
        ours = by_this_project(net, example)
        rows.append({"pattern": case.name, "seen_in": case.seen_in, "cause": case.cause, "alone": theirs, "here": ours})
        print(f"{case.name}\n  torch-pruning: {theirs}\n  here: {ours}")
    content = {
        "command": "python tools/benchmarks/upstream.py --output docs/results",
        "versions": {name: version(name) for name in ("torch", "torch-pruning")},
        "cases": rows,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "upstream.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
