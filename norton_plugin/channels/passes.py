"""The passes of a model under one trace: in evaluation mode, and in training mode where that left layers idle."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.channels.conditions import followable, watched_modules
from norton_plugin.channels.deadline import Deadline
from norton_plugin.channels.idle import has_idle_tables, idle_layers, surroundings
from norton_plugin.channels.label_maps import ChannelLabels
from norton_plugin.channels.provenance import SizeProvenance
from norton_plugin.channels.records import Rescale
from norton_plugin.channels.trace import Trace
from norton_plugin.channels.tracer import Tracer
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import output_tensors
from norton_plugin.modules.training_mode import run_training, training
from norton_plugin.reasons import Reason

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passes:
    """What every pass needs.

    Attributes:
        model: The model.
        trace: Takes what the passes say.
        deadline: Of all passes together.
    """

    model: nn.Module
    trace: Trace
    deadline: Deadline

    def take(self, inputs: Any) -> None:
        """Note that the tensors among the inputs are data without channels."""
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self.trace.set_labels(leaf, ChannelLabels((), False))

    def follow(self, run: Callable[[], Any], mode: AbstractContextManager[None] | None = None) -> Any:
        """Return what ``run`` returns, run under the trace.

        Args:
            run: Runs the model.
            mode: Entered after the model was put into evaluation mode.
        """
        tracer = Tracer(self.trace, self.deadline)
        with (
            followable(self.model, self.trace.axes.dense_weights),
            mode or nullcontext(),
            watched_modules(tracer),
            SizeProvenance(tracer),
            tracer,
        ):
            return run()


def pin_outputs(trace: Trace, output: Any) -> None:
    """Pin the channels of what a model returned."""
    for tensor in output_tensors(output):
        labels = trace.labels_of(tensor)
        for label_map in (*labels.maps, *labels.stays, *labels.emptied):
            trace.pin(label_map, Reason.MODEL_OUTPUT.because())
    trace.pin_numbered([leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)])


def follow_idle(passes: Passes, example_inputs: Any, run_on: Callable[[Any], Any]) -> dict[str, nn.Module]:
    """Trace a model in training mode where layers are idle; pin what those may read that stay idle there too.

    Args:
        passes: After the pass in evaluation mode.
        example_inputs: Of that pass.
        run_on: Runs the model on inputs.

    Returns:
        The layers that the pass in evaluation mode left idle.
    """
    model, trace = passes.model, passes.trace
    notes = trace.notes
    idle = idle_layers(model, trace)
    if not idle and not has_idle_tables(model, trace):
        return idle
    first = replace(notes)
    extra: list[Rescale] = []
    if _follow_training(passes, example_inputs, run_on):
        own = set(idle.values())
        extra = [entry for entry in notes.rescales if {axis.owner for axis in trace.axes_in(entry.rows)} <= own]
    trace.unsure = surroundings(model, idle_layers(model, trace), trace)
    if trace.unsure:
        passes.follow(partial(run_on, example_inputs))
    # What multiplies rows, or runs in the masked model, counts once: as the first pass said.
    notes.steps, notes.scale_attributes, notes.rescales = first.steps, first.scale_attributes, [*first.rescales, *extra]
    return idle


def _follow_training(passes: Passes, example_inputs: Any, run_on: Callable[[Any], Any]) -> bool:
    """Trace the model in training mode; return whether it runs so on its example."""
    notes = passes.trace.notes
    ran, read, produced = set(notes.ran), set(notes.read), set(notes.produced_output)

    def attempt(inputs: Any) -> Any:
        notes.ran, notes.read = set(ran), set(read)
        notes.steps, notes.rescales, notes.scale_attributes = {}, [], []
        passes.take(inputs)
        return passes.follow(partial(run_on, inputs), training(passes.model))

    try:
        pin_outputs(passes.trace, run_training(attempt, example_inputs))
    except SurgeryError:
        raise
    except Exception:
        logger.debug("the model does not run in training mode on its example", exc_info=True)
        notes.ran, notes.read, notes.produced_output = ran, read, produced
        return False
    finally:
        passes.trace.module_stack.clear()
    notes.training_steps = notes.steps
    return True
