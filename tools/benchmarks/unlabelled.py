"""What benchmarks of compression on unlabelled images share: their options, images and facts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from cifar_data import add_arguments, load_images, load_resnet, machine
from hybrid import Images

from norton_plugin.mm import evaluate
from norton_plugin.zoo import ModelSource

_Result = TypeVar("_Result")
# How long the decomposition searches where many compressions are compared: enough to tell them apart.
QUICK: dict[str, Any] = {"restarts": 1, "sweeps": 60}


def parser_of(description: str | None, *, networks: list[str], test_images: int = 2000) -> argparse.ArgumentParser:
    """Return a parser of the common options.

    Args:
        description: Of the benchmark.
        networks: Default of ``--networks``.
        test_images: Default of ``--test-images``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--networks", nargs="+", default=networks, choices=["resnet20", "resnet56"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the calibration images")
    parser.add_argument("--count", type=int, default=1000, help="calibration images, those held back included")
    parser.add_argument("--test-images", type=int, default=test_images, help="drawn with seed 123; 10000 are all")
    return parser


def open_images(arguments: argparse.Namespace) -> Images:
    """Load training and test images, and set the number of threads."""
    torch.set_num_threads(arguments.threads)
    test = load_images(arguments.images, "test")
    if arguments.test_images < len(test):
        test = test.subset(arguments.test_images, seed=123)
    return Images(load_images(arguments.images, "train"), test)


def facts_of(script: str, used: str = "calibration") -> dict[str, Any]:
    """Return what stands above the rows of a benchmark.

    Args:
        script: Name of the file.
        used: What unlabelled images are for.
    """
    return {
        "command": f"python tools/benchmarks/{script} --weights WEIGHTS",
        "data": f"CIFAR-10 (JPEG); {used} on unlabelled training images; no fine-tuning",
        "machine": machine(),
    }


def accuracy(model: torch.nn.Module, source: ModelSource, images: Images) -> float:
    """Top-1 in percent on the test images."""
    return round(evaluate(model, images.test, mean=source.mean, std=source.std, batch_size=64).top1, 2)


def dense_networks(arguments: argparse.Namespace, images: Images) -> Iterator[tuple[str, ModelSource, float]]:
    """Yield each network that is asked for, in evaluation mode, with its name and its accuracy."""
    for name in arguments.networks:
        source = load_resnet(name, arguments.weights)
        source.model.eval()
        yield name, source, accuracy(source.model, source, images)


def timed(work: Callable[[], _Result]) -> tuple[_Result, dict[str, float]]:
    """Return what some work returns, and its seconds for a row."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"wall_seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    return result, {name: round(value, 1) for name, value in seconds.items()}
