"""The paper's complexity figures, reproduced by real surgery on its networks and counted.

Ratio lists are those of the public repository: the share of filters removed, first for the stem and the stages'
outputs, then for the inner channels of every block. Weights are random: complexity does not depend on them.
Parameters agree to the number (VGG-16-BN without the convolutions' biases, which the paper's compressed network does
not have: a BatchNorm follows). Our counter sees convolutions and matrix products alone; the paper's also counts what
lies between them, as ptflops does: two operations per element of a BatchNorm, one per element of a ReLU and per input
element of max and global average pooling, one per bias of a Linear layer. Both counts are written; the second agrees
with the paper's pruned points to the operation.

    python tools/benchmarks/complexity.py --output docs/results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from norton_plugin import compress
from norton_plugin.recipe import Decomposition, Pruning, Recipe, Scope
from norton_plugin.zoo import load_source

PAPER_VGG = {
    "parameters_down_percent": [87.06, 75.98, 64.91, 53.84, 42.76, 31.69, 20.61, 9.54],
    "macs_down_percent": [88.03, 76.44, 64.85, 53.27, 41.69, 30.10, 18.51, 6.93],
}


class ElementwiseCounter(TorchDispatchMode):
    """Operations that the paper's counter adds to those of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Count one call."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if "batch_norm" in name:
            self.operations += 2 * args[0].numel()
        elif name in ("relu", "relu_", "max_pool2d_with_indices") or (name == "mean" and args[0].dim() == 4):
            self.operations += args[0].numel()
        elif name == "addmm":
            self.operations += result.numel()
        return result


def elementwise_operations(model: nn.Module, example: torch.Tensor) -> int:
    """Operations of norms, activations, pooling and biases in one pass, in evaluation mode."""
    with torch.no_grad(), ElementwiseCounter() as counter:
        model(example)
    return counter.operations


def build(source: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    """Return a model with random weights and one image for it; convolutions before a BatchNorm lose their biases."""
    torch.manual_seed(0)
    model = load_source(source, input_size=size).model.eval()
    if source.startswith("cifar:vgg"):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.bias = None
    return model, torch.randn(1, 3, size, size)


def vgg_keeps() -> dict[str, float]:
    """[0.6] * 6 + [0.8] * 7: one ratio per convolution."""
    model, _ = build("cifar:vgg16_bn", 32)
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return dict(zip(convs, [1 - 0.6] * 6 + [1 - 0.8] * 7, strict=True)) | {"classifier": 1.0}


def resnet50_keeps() -> dict[str, float]:
    """[0.] + [0.1] * 2 + [0.4] * 5 + [0.75] * 12: stem, outputs of stages 1-3, then the 16 blocks' inner channels."""
    rates = [0.0] + [0.1] * 2 + [0.4] * 5 + [0.75] * 12
    keeps = {"conv1": 1 - rates[0], "fc": 1.0, "layer4": 1.0}
    keeps |= {f"layer{stage}": 1 - rates[stage] for stage in (1, 2, 3)}
    blocks = [
        f"layer{stage}.{i}" for stage, count in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True) for i in range(count)
    ]
    for block, rate in zip(blocks, rates[4:], strict=True):
        keeps |= {f"{block}.conv1": 1 - rate, f"{block}.conv2": 1 - rate}
    return keeps


def densenet40_keeps() -> dict[str, float]:
    """[0.] + [0.08] * 6 + [0.09] * 6 + [0.08] * 26: stem, 12 layers, transition, 12 layers, transition, 12 layers.

    A transition's ratio is meant of the channels that reach it, which are fewer by then.
    """
    rates = iter([0.0] + [0.08] * 6 + [0.09] * 6 + [0.08] * 26)
    keeps = {"features.conv0": 1 - next(rates), "classifier": 1.0}
    dense, kept = 24, 24
    for block in (1, 2, 3):
        for layer in range(12):
            rate = next(rates)
            keeps[f"features.denseblock{block}.{layer}.conv1"] = 1 - rate
            dense, kept = dense + 12, kept + int(12 * (1 - rate))
        if block < 3:
            kept = int(kept * (1 - next(rates)))
            keeps[f"features.transition{block}.conv"] = kept / dense
    return keeps


def measure(
    source: str, size: int, rank: int, keeps: dict[str, float], *, exclude: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Compress and count."""
    model, example = build(source, size)
    recipe = Recipe(
        scope=Scope(exclude=exclude),
        # One start and few sweeps: the factors' quality does not change the count.
        decomposition=Decomposition(rank=rank, allow_more_macs=True, restarts=1, sweeps=5),
        pruning=Pruning(keeps=keeps, round_to=1),
    )
    compressed, report = compress(model, example, recipe)
    before = report.macs_before + elementwise_operations(model, example)
    after = report.macs_after + elementwise_operations(compressed, example)
    return {
        "macs": report.macs_after,
        "macs_and_elementwise": after,
        "macs_and_elementwise_down_percent": round(100 * (1 - after / before), 2),
        "parameters": report.parameters_after,
        "macs_down_percent": round(100 * (1 - report.macs_after / report.macs_before), 2),
        "parameters_down_percent": round(100 * (1 - report.parameters_after / report.parameters_before), 2),
        "dense_macs": report.macs_before,
        "dense_parameters": report.parameters_before,
        "largest_verification_error": max((g.error or 0.0 for g in report.pruning.groups), default=None),
    }


def by_rank() -> list[dict[str, Any]]:
    """Measure VGG-16-BN with all 13 convolutions decomposed, at ranks 1 to 8."""
    table = []
    for rank in range(1, 9):
        row = measure("cifar:vgg16_bn", 32, rank, {})
        row["rank"] = rank
        row |= {f"paper_{key}": values[rank - 1] for key, values in PAPER_VGG.items()}
        table.append(row)
        print(
            f"VGG-16-BN R={rank}: MACs down {row['macs_down_percent']} %, as the paper counts "
            f"{row['macs_and_elementwise_down_percent']} % (paper {row['paper_macs_down_percent']}), "
            f"parameters down {row['parameters_down_percent']} % (paper {row['paper_parameters_down_percent']})"
        )
    return table


def pruned_points() -> list[dict[str, Any]]:
    """Measure the points of the paper that are decomposed and pruned, each beside the paper's figures."""
    points: list[tuple[str, dict[str, float], Callable[[], dict[str, Any]]]] = [
        (
            "VGG-16-BN, R=1, [0.6]*6+[0.8]*7",
            {"macs": 4_582_498, "parameters": 149_648},
            lambda: measure("cifar:vgg16_bn", 32, 1, vgg_keeps()),
        ),
        (
            "ResNet-50, R=1, [0.]+[0.1]*2+[0.4]*5+[0.75]*12",
            {"macs": 923_650_408, "parameters": 5_885_736},
            lambda: measure("torchvision:resnet50", 224, 1, resnet50_keeps(), exclude=("conv1",)),
        ),
        (
            "DenseNet-40, R=8, [0.]+[0.08]*6+[0.09]*6+[0.08]*26",
            {"macs": 213_587_810, "parameters": 745_468},
            lambda: measure("cifar:densenet40", 32, 8, densenet40_keeps()),
        ),
    ]
    results = []
    for name, paper, run in points:
        row = {"point": name, **run(), "paper_macs": paper["macs"], "paper_parameters": paper["parameters"]}
        row["macs_over_paper"] = round(row["macs"] / paper["macs"], 4)
        row["macs_and_elementwise_over_paper"] = row["macs_and_elementwise"] / paper["macs"]
        row["parameters_over_paper"] = round(row["parameters"] / paper["parameters"], 4)
        results.append(row)
        print(
            f"{name}: {row['macs'] / 1e6:.2f} M MACs, {row['macs_and_elementwise']:,} as the paper counts "
            f"(paper {paper['macs']:,}), "
            f"{row['parameters']:,} parameters (paper {paper['parameters']:,})"
        )
    return results


def main() -> None:
    """Parse the arguments, measure, print and write ``complexity.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for complexity.json")
    arguments = parser.parse_args()
    content = {
        "command": "python tools/benchmarks/complexity.py --output docs/results",
        "vgg16_bn_by_rank": by_rank(),
        "pruned_points": pruned_points(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "complexity.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
