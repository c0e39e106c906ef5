"""The paper's Figure 1 at equal MACs, on whole networks: which filters share components, without fine-tuning.

Budget of a layer: the MACs of its filter level at rank R, stride included. The package's levels are real blocks; the
comparison methods (`comparison_macs` states their chains of convolutions) get the largest rank within the same MACs,
and their approximated weight is written into the convolution. Layers in which rank R saves nothing (stride 2) and the
first convolution stay dense for every method. Measured: the NMSE of a layer, averaged over layers, and the accuracy
with BatchNorm statistics re-estimated on 1024 training images drawn by the calibration seed. No label is used.
Each measurement adds a row to ``levels.json``, so networks, ranks, methods and seeds can be run one by one.

    python tools/benchmarks/levels.py --weights WEIGHTS
    python tools/benchmarks/levels.py --weights WEIGHTS --networks resnet20 --ranks 1 --methods filter layer --seeds 1 2
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from cifar_data import add_arguments, batches, load_images, load_resnet, machine
from comparison_macs import chain_macs, rank_for_macs
from comparison_methods import approximate_layer
from hybrid import EXAMPLE, Images, add_row
from levels_plot import plot
from levels_recipe import LEVELS, recipe_for, run_dense_
from torch import nn

from norton_plugin import CompressionReport, compress
from norton_plugin.blocks import conv_cost, cpd_cost
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.cost import count_cost
from norton_plugin.mm import evaluate
from norton_plugin.zoo import ModelSource

COMPARISONS = ("tucker2", "svd_channels", "svd_spatial")
CALIBRATION = 1024


class Approximated(NamedTuple):
    """A network at a budget.

    Attributes:
        model: Ready to run.
        macs_share: MACs of the network as a share of the dense one's.
        nmse: Of a layer, averaged over layers.
        layers: Layers approximated.
        seconds: Processor time.
    """

    model: nn.Module
    macs_share: float
    nmse: float
    layers: int
    seconds: float


def by_level(model: nn.Module, level: str, rank: int) -> tuple[nn.Module, CompressionReport]:
    """Compress by the package itself."""
    compressed, report = compress(model, EXAMPLE, recipe_for(level, rank))
    run_dense_(compressed)
    return compressed, report


def by_comparison(model: nn.Module, method: str, rank: int, names: list[str]) -> tuple[nn.Module, float, float]:
    """Write approximated weights into a copy of the network.

    Args:
        model: The dense network.
        method: One of ``COMPARISONS``.
        rank: R of the filter level, whose MACs are the budget of each layer.
        names: Layers that the filter level decomposes.

    Returns:
        The network, its MACs as a share of the dense one's, and the mean NMSE of a layer.
    """
    approximated = copy.deepcopy(model)
    cost = count_cost(model, lambda: model(EXAMPLE))
    macs, errors = cost.macs, []
    for name in names:
        conv = approximated.get_submodule(name)
        weight = conv.weight.detach()
        filters, channels, kh, kw = weight.shape
        before, after = cost.map_sizes[name]
        sizes = {"input_size": before, "output_size": after}
        budget = cpd_cost(filters, channels, (kh, kw), rank, **sizes).macs
        own = rank_for_macs(tuple(weight.shape), budget, method=method, **sizes)
        found = approximate_layer(weight, own, method=method)
        conv.weight.data.copy_(found.weight)
        errors.append(found.nmse)
        macs += chain_macs(tuple(weight.shape), own, method=method, **sizes)
        macs -= conv_cost(filters, channels, (kh, kw), output_size=after).macs
    return approximated, macs / cost.macs, sum(errors) / len(errors)


def approximations(model: nn.Module, rank: int, methods: list[str]) -> Iterator[tuple[str, Approximated]]:
    """Yield the network by each method at the MACs of one rank."""
    names = [layer.names[0] for layer in by_level(model, "filter", rank)[1].decomposition.layers]
    for method in methods:
        begin = time.process_time()
        if method in COMPARISONS:
            net, share, nmse = by_comparison(model, method, rank, names)
        else:
            net, report = by_level(model, method, rank)
            layers = report.decomposition.layers
            if [layer.names[0] for layer in layers] != names:
                raise SystemExit(f"{method} decomposes other layers than the filter level at rank {rank}")
            share = report.macs_after / report.macs_before
            nmse = sum(layer.nmse_layer or 0.0 for layer in layers) / len(layers)
        yield method, Approximated(net, share, nmse, len(names), time.process_time() - begin)


def accuracy(net: nn.Module, source: ModelSource, images: Images, seed: int) -> float:
    """Top-1 on all test images, after re-estimating the BatchNorm statistics in place."""
    sample = batches(images.train.subset(CALIBRATION, seed=seed), source)
    reestimate_batch_norm_(net, sample, call=lambda model, x: model(x), images=CALIBRATION)
    return round(evaluate(net, images.test, mean=source.mean, std=source.std, batch_size=64).top1, 2)


def run_network(name: str, images: Images, arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Measure one network and add its rows to the JSON."""
    source = load_resnet(name, arguments.weights)
    dense, path = source.model.eval(), arguments.output / "levels.json"

    def add(method: str, rank: int, found: Approximated) -> None:
        for seed in arguments.seeds:
            row = {"network": name, "method": method, "budget_rank": rank, "seed": seed, "layers": found.layers}
            row |= {"macs_share": round(found.macs_share, 4), "mean_nmse": round(found.nmse, 4)}
            row |= {"top1": accuracy(found.model, source, images, seed), "seconds": round(found.seconds, 1)}
            print(row, flush=True)
            add_row(path, f"{name} {method} R={rank} seed {seed}", row, facts)

    if "dense" in arguments.methods:
        add("dense", 0, Approximated(copy.deepcopy(dense), 1.0, 0.0, 0, 0.0))
    for rank in arguments.ranks:
        for method, found in approximations(dense, rank, [m for m in arguments.methods if m != "dense"]):
            add(method, rank, found)


def main() -> None:
    """Parse the arguments, measure, print, write and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    every = ["dense", *LEVELS, *COMPARISONS]
    parser.add_argument("--networks", nargs="*", default=["resnet20", "resnet56"], choices=["resnet20", "resnet56"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], help="filter-level ranks: the budgets")
    parser.add_argument("--methods", nargs="+", default=every, choices=every)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration images")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = Images(load_images(arguments.images, "train"), load_images(arguments.images, "test"))
    facts = {
        "command": "python tools/benchmarks/levels.py --weights WEIGHTS",
        "data": f"CIFAR-10 (JPEG), all 10,000 test images; BatchNorm statistics from {CALIBRATION} training images; "
        "no fine-tuning",
        "machine": machine(),
    }
    for name in arguments.networks:
        run_network(name, images, arguments, facts)
    content = json.loads((arguments.output / "levels.json").read_text())
    plot(list(content["variants"].values()), arguments.output / "levels.png")


if __name__ == "__main__":
    main()
