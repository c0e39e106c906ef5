"""What is timed: the dense and the compressed model, in PyTorch and as files of other runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from norton_plugin.bench.memory import first_call_peak
from norton_plugin.deploy import prepare
from norton_plugin.deploy.choices import Forms
from norton_plugin.deploy.compiling import NOT_CALLED, compiled
from norton_plugin.deploy.memory_format import FORMATS, laid_out, lay_out_
from norton_plugin.errors import ExportError, MissingExtraError, NortonError
from norton_plugin.export import RUNTIMES, Int8, Runtime, export
from norton_plugin.export.int8 import int8_path
from norton_plugin.export.runtimes import open_file
from norton_plugin.modules.duplication import duplicate
from norton_plugin.modules.running import ForwardFunction, fixed_batch, is_unordered, run_model
from norton_plugin.modules.threads import torch_threads

PYTORCH, CHANNELS_LAST = "PyTorch", "PyTorch, channels_last"
_MEMORY_FORMATS = {PYTORCH: FORMATS["contiguous"], CHANNELS_LAST: FORMATS["channels_last"]}
_COMPILED = {PYTORCH: "torch.compile", CHANNELS_LAST: "torch.compile, channels_last"}
IN_PYTORCH = (*_COMPILED, *_COMPILED.values())
NAMES: dict[Runtime, str] = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}
DENSE, FOLDED, COMPRESSED, DELIVERED, INT8 = "dense", "dense, folded", "compressed", "delivered", "delivered, int8"

Call = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """One model in one runtime.

    Attributes:
        model: One of the names above.
        runtime: Likewise.
        open: ``(inputs, threads) -> call``.
    """

    model: str
    runtime: str
    open: Callable[[Any, int], Call]


@dataclass(frozen=True)
class OpenedCandidate:
    """A candidate that has run once.

    Attributes:
        call: Runs it again.
        peak_mib: What its first call needed, see `first_call_peak`.
    """

    call: Call
    peak_mib: float | None


@dataclass
class Candidates:
    """All that is timed, and what could not be had.

    Attributes:
        found: To be timed.
        left: What could not be made, each with the reason.
        prepared: The dense and the delivered model, as ``prepare`` made them; filled by `add_pytorch`.
    """

    found: list[Candidate] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    prepared: dict[str, nn.Module] = field(default_factory=dict)

    def add_pytorch(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        example_inputs: Any,
        forward_fn: ForwardFunction | None,
        timed_fn: ForwardFunction | None,
        *,
        forms: Forms = "static",
        compile: bool = False,
    ) -> None:
        """Add both models as they are, and both made ready for inference, in either memory format.

        Args:
            dense: The original.
            compressed: What became of it.
            example_inputs: As of ``prepare``.
            forward_fn: Likewise.
            timed_fn: Run in its place where time is taken.
            forms: Of the compressed model's blocks, as of ``prepare``.
            compile: Add both compiled by ``torch.compile``, too.
        """
        timed_fn = timed_fn or forward_fn
        if compile and timed_fn is not None:
            self.left.append(("the model in torch.compile", NOT_CALLED))
            compile = False
        pairs: tuple[tuple[str, str, nn.Module, Forms], ...] = (
            (DENSE, FOLDED, dense, "static"),
            (COMPRESSED, DELIVERED, compressed, forms),
        )
        for name, ready, model, own in pairs:
            self.found.append(Candidate(name, PYTORCH, partial(_in_pytorch, model, timed_fn)))
            self.prepared[ready] = prepare(model, example_inputs, forms=own, forward_fn=forward_fn).model
        for ready, model in self.prepared.items():
            for runtime, memory in _MEMORY_FORMATS.items():
                placed = lay_out_(duplicate(model), memory)
                self.found.append(Candidate(ready, runtime, partial(_in_pytorch, placed, timed_fn, memory=memory)))
                if compile:
                    opened = partial(_compiled, placed, timed_fn, memory=memory)
                    self.found.append(Candidate(ready, _COMPILED[runtime], opened))

    def add_files(
        self,
        models: Iterable[tuple[str, nn.Module]],
        example_inputs: Any,
        runtimes: Sequence[Runtime],
        folder: Path,
        *,
        forward_fn: ForwardFunction | None = None,
        int8: Int8 | None = None,
    ) -> None:
        """Add what `norton_plugin.export` makes of the models; what it refuses is listed.

        Args:
            models: ``DENSE`` and ``DELIVERED``, each with its model.
            example_inputs: A tensor, or a sequence of positional ones.
            runtimes: To open the files in.
            folder: For the files, which are needed as long as the candidates are.
            forward_fn: As of ``prepare``.
            int8: Quantise the compressed model too.
        """
        if int8 is not None and is_unordered(forward_fn):
            self.left.append((INT8, "a whole detector is not quantised"))
            int8 = None
        for name, model in models:
            path = folder / f"{name}.onnx"
            try:
                export(model, example_inputs, path, forward_fn=forward_fn, int8=int8 if name == DELIVERED else None)
            except (ExportError, MissingExtraError) as error:
                self.left.append((f"{name} as ONNX", str(error)))
                continue
            for runtime in runtimes:
                opened = partial(_from_file, path, runtime, batch=fixed_batch(forward_fn))
                self.found.append(Candidate(name, NAMES[runtime], opened))
            if int8 is not None and name == DELIVERED:
                quantised = int8_path(path, int8.runtime)
                opened = partial(_from_file, quantised, int8.runtime)
                self.found.append(Candidate(INT8, NAMES[int8.runtime], opened))

    def opened(self, inputs: Any, threads: int) -> dict[Candidate, OpenedCandidate]:
        """Open every candidate for an input and call it once; one that cannot take it is listed with the reason."""
        opened: dict[Candidate, OpenedCandidate] = {}
        if any(candidate.runtime in _COMPILED.values() for candidate in self.found):
            # Else sizes that were compiled before lead to code for any size, and after eight compilations to none.
            torch.compiler.reset()
        for candidate in self.found:
            try:
                with torch_threads(threads), torch.inference_mode():
                    call = candidate.open(inputs, threads)
                    opened[candidate] = OpenedCandidate(call, first_call_peak(call))
            except Exception as error:
                problem = str(error).partition("\n")[0] or type(error).__name__
                entry = (f"{candidate.model} in {candidate.runtime}", problem)
                if candidate.model == DENSE and candidate.runtime == PYTORCH:
                    raise NortonError(f"the dense model does not run on its example: {problem}") from error
                if entry not in self.left:
                    self.left.append(entry)
        return opened


def _in_pytorch(
    model: nn.Module,
    forward_fn: ForwardFunction | None,
    inputs: Any,
    threads: int,
    *,
    memory: torch.memory_format = torch.preserve_format,
) -> Call:
    """PyTorch's threads are those of the process."""
    model.eval()
    placed = tree_map(lambda leaf: laid_out(leaf, memory) if isinstance(leaf, Tensor) else leaf, inputs)
    return lambda: run_model(model, placed, forward_fn)


def _compiled(model: nn.Module, *arguments: Any, memory: torch.memory_format) -> Call:
    """Compile for this input, before the first call that counts: the memory that takes is not that of a call."""
    call = _in_pytorch(compiled(model), *arguments, memory=memory)
    call()
    return call


def _from_file(path: Path, runtime: Runtime, inputs: Any, threads: int, *, batch: int | None = None) -> Call:
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if batch not in (None, len(given[0])):
        raise NortonError(f"the file takes a batch of {batch}, not of {len(given[0])}")
    run = open_file(path, runtime, image=given[0] if len(given) == 1 else None, threads=threads)
    return lambda: run(given)


__all__ = ["RUNTIMES", "Candidate", "Candidates"]
