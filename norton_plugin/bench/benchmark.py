"""The job: a dense and a compressed model timed side by side, in one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from norton_plugin.bench.candidates import DELIVERED, DENSE, FOLDED, Candidates
from norton_plugin.bench.layers import LayerSpeed, layer_speed, seen_layers
from norton_plugin.bench.report import BenchReport, Setting
from norton_plugin.bench.timing import of_batch, samples_of, setting_of
from norton_plugin.cost import ModelCost, count_cost
from norton_plugin.deploy.choices import Forms
from norton_plugin.errors import RecipeError
from norton_plugin.export import RUNTIMES, Int8, Runtime
from norton_plugin.export.processor import processor_name
from norton_plugin.modules.running import ForwardFunction, counted_by, run_model, traceable
from norton_plugin.modules.threads import torch_threads

_LAYER_SECONDS = 0.5


def bench(
    dense: nn.Module,
    compressed: nn.Module,
    example_inputs: Any,
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    runtimes: Sequence[Runtime] = (),
    rounds: int = 15,
    seconds: float = 30.0,
    layers: bool = True,
    int8: Int8 | None = None,
    forms: Forms = "static",
    compile: bool = False,
    forward_fn: ForwardFunction | None = None,
    timed_fn: ForwardFunction | None = None,
    export_forward: ForwardFunction | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_step: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Time the dense and the compressed model, as loaded, as delivered and as exported, interleaved in one run.

    Args:
        dense: The original; left as it is, in evaluation mode.
        compressed: What became of it; likewise.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments, as both models take them.
        batches: Batch sizes. The example's first image is repeated.
        threads: Numbers of processor threads.
        runtimes: Runtimes to export to (extra ``export``); PyTorch is always timed.
        rounds: Timed calls of each candidate, at each setting.
        seconds: At each setting no further round begins after so many; three are made in any case, if asked for.
        layers: Also time every changed layer by itself.
        int8: Also time the compressed model quantised by these settings.
        forms: Of the compressed model's blocks in PyTorch, as of ``deploy.prepare``: such as the ``forms`` of a table
            that ``norton deploy`` measured. Files of other runtimes have those that ``export`` chooses.
        compile: Also time both models compiled by ``torch.compile``, their weights taken for constants.
        forward_fn: ``(model, example_inputs) -> output`` where a plain call does not run the model.
        timed_fn: Likewise, for what is timed in PyTorch where that is more, such as a detector's boxes; ``forward_fn``
            by default.
        export_forward: Likewise, for the exported models; the plain call by default.
        clock: Gives seconds.
        on_step: Told what begins.

    Raises:
        RecipeError: No batch, thread or round, an example without a batch axis, or forms of blocks that are not there.
        NortonError: The dense model does not run on its example.
    """
    _check(batches=batches, threads=threads, rounds=rounds, runtimes=runtimes)
    on_step("counting")
    models = {DENSE: dense.eval(), DELIVERED: compressed.eval()}
    filed = bool(runtimes) or int8 is not None
    costs = _costs(models.values(), example_inputs, forward_fn)
    in_files = _macs_of_files(models.values(), costs, example_inputs, export_forward) if filed else None
    timed: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "clock": clock}
    ratio = costs[0].macs / max(costs[1].macs, 1)
    timed |= {"macs_ratio": ratio, "file_macs_ratio": in_files[0] / max(in_files[1], 1) if in_files else ratio}
    with tempfile.TemporaryDirectory(prefix="norton-bench-") as folder, traceable(dense), traceable(compressed):
        candidates = Candidates()
        on_step("lowering and folding")
        candidates.add_pytorch(dense, compressed, example_inputs, forward_fn, timed_fn, forms=forms, compile=compile)
        if filed:
            on_step("exporting")
            candidates.add_files(
                models.items(), example_inputs, runtimes, Path(folder), forward_fn=export_forward, int8=int8
            )
        settings: list[Setting] = []
        for count, batch in product(threads, batches):
            on_step(f"timing batch {batch} on {count} thread(s)")
            opened = candidates.opened(of_batch(example_inputs, batch), count)
            settings.append(setting_of(opened, batch=batch, threads=count, **timed))
        found: tuple[LayerSpeed, ...] = ()
        if layers:
            on_step("timing layers")
            timed = {"rounds": rounds, "seconds": _LAYER_SECONDS, "clock": clock}
            with torch_threads(threads[0]):
                found = _layers(candidates.prepared, costs, of_batch(example_inputs, batches[0]), forward_fn, timed)
    return BenchReport(
        device=processor_name(),
        macs_dense=costs[0].macs,
        macs=costs[1].macs,
        parameters_dense=costs[0].parameters,
        parameters=costs[1].parameters,
        file_macs=in_files,
        settings=tuple(settings),
        layers=found,
        left=tuple(candidates.left),
    )


def _check(*, batches: Sequence[int], threads: Sequence[int], rounds: int, runtimes: Sequence[str]) -> None:
    for name, values in (("batches", batches), ("threads", threads), ("rounds", (rounds,))):
        if not values or any(value < 1 for value in values):
            raise RecipeError(f"{name} are {list(values)}; expected one or more numbers, each at least 1")
    if unknown := [name for name in runtimes if name not in RUNTIMES]:
        raise RecipeError(f"runtimes {unknown} are not known; expected some of {list(RUNTIMES)}")


def _costs(
    models: Iterable[nn.Module], example_inputs: Any, forward_fn: ForwardFunction | None
) -> tuple[ModelCost, ...]:
    run = counted_by(forward_fn)
    return tuple(count_cost(model, partial(run_model, model, example_inputs, run)) for model in models)


def _macs_of_files(
    models: Iterable[nn.Module],
    costs: Sequence[ModelCost],
    example_inputs: Any,
    export_forward: ForwardFunction | None,
) -> tuple[int, int] | None:
    """Return the MACs of what files hold of the models; None where it does not run, which the export then tells.

    Args:
        models: The dense and the compressed one.
        costs: Of the whole models, which files hold where there is no ``export_forward``.
        example_inputs: As of ``bench``.
        export_forward: Likewise.
    """
    try:
        dense, compressed = costs if export_forward is None else _costs(models, example_inputs, export_forward)
    except Exception:
        return None
    return dense.macs, compressed.macs


def _layers(
    prepared: Mapping[str, nn.Module],
    costs: Sequence[ModelCost],
    example_inputs: Any,
    forward_fn: ForwardFunction | None,
    timed: dict[str, Any],
) -> tuple[LayerSpeed, ...]:
    """Time every layer whose MACs changed: the dense one, with its norm folded, and what took its place."""
    before, after = (cost.layer_macs for cost in costs)
    names = {
        name: (macs, now)
        for name, macs in before.items()
        if (now := sum(own for other, own in after.items() if other == name or other.startswith(f"{name}."))) != macs
    }
    dense, delivered = (
        seen_layers(prepared[kind], list(names), example_inputs, forward_fn) for kind in (FOLDED, DELIVERED)
    )
    found = []
    for name, macs in names.items():
        if name in dense and name in delivered:
            pair = {"dense": dense[name], "delivered": delivered[name]}
            calls = {key: partial(seen.module, seen.given) for key, seen in pair.items()}
            found.append(layer_speed(name, pair["dense"], pair["delivered"], samples_of(calls, **timed), macs))
    return tuple(found)
