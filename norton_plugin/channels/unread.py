"""Channels that come to nothing: whatever reads them is code that cannot be seen."""

from __future__ import annotations

import torch

from norton_plugin.channels.grouping import produces
from norton_plugin.channels.label_maps import core
from norton_plugin.channels.label_table import Classes
from norton_plugin.channels.tracer import Tracer
from norton_plugin.reasons import Reason

# Operations that make something else of the channels they are given; the others pass them on.
_READING = ("zero", "reduce")


def pin_unread(tracer: Tracer, classes: Classes) -> Classes:
    """Keeps the channels that layers make and no operation of the trace takes in.

    Compiled operators (deformable convolutions) are handed the memory of tensors past the trace, and may read beyond
    its end where channels are gone.

    Args:
        tracer: After its run.
        classes: What the run came to.

    Returns:
        The classes with those channels pinned.
    """
    read = torch.zeros(len(classes.roots), dtype=torch.bool)
    for step in tracer.steps.values():
        if step.kind in _READING:
            for plane in step.planes:
                read[classes.roots[core(plane).reshape(-1)]] = True
    made = torch.zeros_like(read)
    for family in tracer.registry.families:
        if produces(family):
            made[classes.roots[family.base : family.base + family.size]] = True
    lost = made & ~read & (classes.pinned == 0)
    if not bool(lost.any()):
        return classes
    tracer.table.pin(torch.nonzero(lost).reshape(-1), Reason.NOT_CONSUMED.because())
    return tracer.table.resolve()
