"""Latency of whole models whose 3x3 convolutions are decomposed to equal MACs, in PyTorch and in onnxruntime.

    OMP_NUM_THREADS=1 python tools/benchmarks/equal_latency_models.py

ResNet-50 of timm and RetinaNet R50-FPN of mmdet (backbone, neck and head), batch 1, norms folded, random weights: it
is the time alone that is asked for. Added to ``model_latency.json`` after every model and runtime.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from layer_chains import forms_of, level_chain, random_chain, rank_within
from layer_shapes import Layer
from mmcv.cnn.utils import fuse_conv_bn
from onnx_chain import chain_session, run, session
from quiet_timing import FORMATS, METHOD, fastest, middle, prepare, repeated
from torch import Tensor, nn

from norton_plugin.zoo import load_source

METHODS = ("filter", "layer", "tucker2", "svd_spatial")
MODELS = {"ResNet-50": ("timm:resnet50", 224), "RetinaNet R50-FPN": ("mmdet:retinanet/retinanet_r50_fpn_1x_coco", 384)}


class Maps(nn.Module):
    """A detector up to the maps of its head."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return all maps of (B, 3, H, W)."""
        scores, boxes = self.detector.bbox_head(self.detector.neck(self.detector.backbone(x)))
        return [*scores, *boxes]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model with its norms folded, and an input."""
    source, size = MODELS[name]
    model = load_source(source, input_size=size).model
    model = Maps(model) if source.startswith("mmdet") else model
    return fuse_conv_bn(model.eval()).eval(), torch.randn(1, 3, size, size)


def layers_of(model: nn.Module, x: Tensor) -> dict[str, Layer]:
    """Return the plain 3x3 convolutions with the largest map that each sees, by name."""
    found: dict[str, Layer] = {}

    def remember(module: nn.Conv2d, arguments: tuple[Tensor, ...], *, name: str) -> None:
        seen = Layer(module.in_channels, arguments[0].shape[-1], module.stride[0], module.out_channels)
        if name not in found or found[name].size < seen.size:
            found[name] = seen

    handles = [
        module.register_forward_pre_hook(partial(remember, name=name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and module.padding == (1, 1)
    ]
    with torch.inference_mode():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def chains_for(layer: Layer, method: str, rank: int) -> dict[str, nn.Module] | None:
    """Return the forms of a method at the MACs of a filter-wise rank; None where that rank saves none."""
    budget = layer.layout("filter", rank)
    if budget is None:
        return None
    if method in ("filter", "layer"):
        layout = layer.layout(method, rank)
        return {form: level_chain(layer, layout, form) for form in forms_of(layout)} if layout else None
    size = rank_within(layer, method, layer.shape.macs(budget))
    return {"chain": random_chain(layer, method, size)} if size else None


def quickest(layer: Layer, chains: dict[str, nn.Module], runtime: str) -> nn.Module:
    """Return the form that is the fastest on the layer's own map."""
    if len(chains) == 1:
        return next(iter(chains.values()))
    x = torch.randn(1, layer.channels, layer.size, layer.size)
    if runtime == "onnxruntime":
        calls = {form: partial(run, chain_session(chain, x), x.numpy()) for form, chain in chains.items()}
        return chains[fastest({"": calls}, rounds=3)[""]]
    memory = torch.channels_last
    placed = {form: deepcopy(chain).to(memory_format=memory) for form, chain in chains.items()}
    x = x.to(memory_format=memory)
    return chains[fastest({"": {form: partial(chain, x) for form, chain in placed.items()}}, rounds=3)[""]]


def decomposed(model: nn.Module, layers: dict[str, Layer], method: str, rank: int, runtime: str) -> nn.Module:
    """Return a copy of a model with chains in place of its 3x3 convolutions where the rank saves MACs."""
    model, chosen = deepcopy(model), {}
    for name, layer in layers.items():
        if layer not in chosen:
            chains = chains_for(layer, method, rank)
            chosen[layer] = chains and quickest(layer, chains, runtime)
        if chosen[layer] is not None:
            model.set_submodule(name, deepcopy(chosen[layer]))
    return model


def exported(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    """Return what runs a model in onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=False)
        return partial(run, session(path), x.numpy())


def measure(name: str, runtime: str, ranks: list[int], rounds: int) -> dict[str, Any]:
    """Return the speed-up of every method at every rank over the dense model."""
    model, x = build(name)
    layers = layers_of(model, x)
    models = {"dense": model} | {
        (method, rank): decomposed(model, layers, method, rank, runtime) for rank in ranks for method in METHODS
    }
    if runtime == "onnxruntime":
        calls = {key: exported(variant, x) for key, variant in models.items()}
        timed = repeated(calls, runs=1, rounds=rounds, budget=60.0)[0]
    else:
        both = []
        for memory in FORMATS.values():
            for variant in models.values():
                variant.to(memory_format=memory)
            calls = {key: partial(variant, x.to(memory_format=memory)) for key, variant in models.items()}
            both += repeated(calls, runs=1, rounds=rounds, budget=60.0)
        timed = {key: min(run_[key] for run_ in both) for key in models}
    return {
        "model": name,
        "size": x.shape[-1],
        "runtime": runtime,
        "layers": len(layers),
        "dense_ms": middle([1e3 * timed["dense"]]),
        "speedup": {
            method: {rank: middle([timed["dense"] / timed[method, rank]]) for rank in ranks} for method in METHODS
        },
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], help="filter-wise ranks: the budgets")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each model")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for model_latency.json")
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    rows = []
    for name in MODELS:
        for runtime in ("PyTorch", "onnxruntime"):
            rows.append(measure(name, runtime, arguments.ranks, arguments.rounds))
            print(rows[-1], flush=True)
            content = {
                "command": "OMP_NUM_THREADS=1 python tools/benchmarks/equal_latency_models.py",
                "method": METHOD,
                "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
                "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
                "rows": rows,
            }
            (arguments.output / "model_latency.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
