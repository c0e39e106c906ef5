"""Forward passes that stop at a layer, so that it can be changed before they go on.

A layer's inputs depend on all layers before it. Every batch runs in a thread of its own, which stops where the layer is
called; when all have stopped, the layer is fitted, and they go on. So a sequential pass over a model costs one forward
pass of each batch, whatever the model's code does, at the price of holding what all batches need to go on
(`held_tensors`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from norton_plugin.calibration.held_tensors import HeldMemory, HeldTensors
from norton_plugin.calibration.operations import OperationCounter
from norton_plugin.calibration.places import LayerPlace
from norton_plugin.calibration.streams import StreamTrace
from norton_plugin.errors import NortonError, SurgeryError, first_line_of

Moment = Literal["before", "after"]
_running = threading.local()


class _CancelledError(BaseException):
    """Ends a forward pass that nobody waits for."""


def does_not_run(error: BaseException) -> SurgeryError:
    """Return what to say of a model that fails on a calibration batch."""
    return SurgeryError(
        f"the model does not run on a calibration batch ({type(error).__name__}: {first_line_of(error)}); give batches "
        "like the example inputs, without labels"
    )


@contextmanager
def failures_explained() -> Iterator[None]:
    """While entered, whatever a model raises on a calibration batch becomes an error of this package."""
    try:
        yield
    except NortonError:
        raise
    except Exception as error:
        raise does_not_run(error) from error


class _Holding(OperationCounter):
    """Counts operations, and tells what the run holds of every tensor that is made."""

    def __init__(self, wanted: Collection[int], held: HeldTensors) -> None:
        super().__init__(wanted)
        self._held = held

    def made(self, tensors: list[Tensor]) -> None:
        """Remember them."""
        self._held.add(tensors)


class PausableRun:
    """One forward pass, in a thread of its own.

    Args:
        run: The forward pass.
        wanted: Places of operations whose results are kept (`OperationCounter`).
        memory: What it may hold, together with other runs.
    """

    def __init__(self, run: Callable[[], Any], *, wanted: Collection[int] = (), memory: HeldMemory) -> None:
        self._held = HeldTensors(memory)
        self.counter = _Holding(wanted, self._held)
        self.inputs: tuple[Any, ...] = ()
        self.output: Any = None
        self._run = run
        self._goal: tuple[nn.Module, Moment] | None = None
        self._error: BaseException | None = None
        self._ended = self._cancelled = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()

    def _body(self) -> None:
        self._go.acquire()
        try:
            if not self._cancelled:
                _running.run = self
                with torch.no_grad(), self.counter:
                    self._run()
        except _CancelledError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._stopped.release()

    def until(self, module: nn.Module, moment: Moment) -> bool:
        """Run on to the next call of a module.

        Args:
            module: One of those that are watched (`watched`).
            moment: Just before the module computes, or just after; ``inputs`` and ``output`` are those of the call.

        Returns:
            False where the pass ended without another call.

        Raises:
            SurgeryError: The model does not run.
        """
        if not self._ended:
            self._goal = (module, moment)
            self._go.release()
            self._stopped.acquire()
        if self._error is not None:
            raise does_not_run(self._error) from self._error
        self.rest()
        return not self._ended

    def rest(self) -> None:
        """Let go of memory that was needed to read what is held; only while it is stopped.

        Raises:
            SurgeryError: More is held than memory and disk take.
        """
        self._held.settle()

    def arrive(self, module: nn.Module, moment: Moment, inputs: tuple[Any, ...], output: Any) -> None:
        """Stop, where this is the goal; called by the hooks of `watched`, in the thread of the run."""
        if self._goal != (module, moment):
            return
        self.inputs, self.output = inputs, output
        self._stopped.release()
        self._go.acquire()
        self.inputs, self.output = (), None
        if self._cancelled:
            raise _CancelledError

    def cancel(self) -> None:
        """End the pass where it stands, and wait for its thread."""
        if not self._ended:
            self._cancelled = True
            self._go.release()
        self._thread.join()


@contextmanager
def watched(modules: Sequence[nn.Module]) -> Iterator[None]:
    """While entered, runs can stop at these modules, and operations inside them are not counted."""

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        run = getattr(_running, "run", None)
        if run is not None:
            run.arrive(module, "before", inputs, None)
            run.counter.enter()

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        run = getattr(_running, "run", None)
        if run is not None:
            run.counter.leave(module, inputs, output)
            run.arrive(module, "after", inputs, output)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield


@contextmanager
def started(
    runs: Sequence[Callable[[], Any]], *, wanted: Collection[int] = (), memory: HeldMemory
) -> Iterator[list[PausableRun]]:
    """While entered, these forward passes stand ready; they are ended on leaving.

    Args:
        runs: The passes.
        wanted: As of `PausableRun`.
        memory: Likewise.
    """
    found: list[PausableRun] = []
    try:
        found += [PausableRun(run, wanted=wanted, memory=memory) for run in runs]
        yield found
    finally:
        for run in found:
            run.cancel()


class _TracedRun:
    """Stands where a pausable run does, and never stops."""

    def __init__(self, counter: OperationCounter) -> None:
        self.counter = counter

    def arrive(self, *_: Any) -> None:
        """Go on."""


def trace_layers(model: nn.Module, layers: Sequence[nn.Module], run: Callable[[], Any]) -> list[LayerPlace]:
    """Return where layers stand in one run of a model, in the order of their first calls.

    Args:
        model: In evaluation mode.
        layers: Those that did not run are left out.
        run: Runs the model once.
    """
    trace = StreamTrace(model)
    followed(trace, layers, run)
    return trace.places(layers)


def followed(trace: OperationCounter, layers: Sequence[nn.Module], run: Callable[[], Any]) -> Any:
    """Let a counter see one run of a model, without gradients, and return what the run does.

    Args:
        trace: Told of every operation.
        layers: Each counts as one operation.
        run: Runs the model once.
    """
    with watched(layers):
        _running.run = _TracedRun(trace)
        try:
            with torch.no_grad(), trace:
                return run()
        finally:
            _running.run = None
