"""Channels that no traced operation consumes: code that the trace cannot see may read them."""

from __future__ import annotations

import torch

from norton_plugin.channels.grouping import produces
from norton_plugin.channels.label_maps import core
from norton_plugin.channels.label_table import Classes
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason


def pin_unconsumed(trace: Trace, classes: Classes) -> Classes:
    """Pin the channels that layers produce and no traced operation consumes.

    Compiled operators (deformable convolutions) get the memory of tensors without the trace knowing, and would read
    beyond its end after channels were removed.

    Args:
        trace: After its run.
        classes: The classes of the run.

    Returns:
        The classes with those channels pinned.
    """
    read = torch.zeros(len(classes.class_of), dtype=torch.bool)
    for step in (*trace.notes.steps.values(), *trace.notes.training_steps.values()):
        if step.masking.consumes:
            for label_map in step.maps:
                read[classes.class_of[core(label_map).reshape(-1)]] = True
    produced = torch.zeros_like(read)
    for axis in trace.axes.axes:
        if produces(axis):
            produced[classes.class_of[axis.base : axis.base + axis.size]] = True
    lost = produced & ~read & (classes.pinned == 0)
    if not bool(lost.any()):
        return classes
    trace.table.pin(torch.nonzero(lost).reshape(-1), Reason.NOT_CONSUMED.because())
    return trace.table.resolve()
