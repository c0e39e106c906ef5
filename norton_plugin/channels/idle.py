"""Layers that the evaluation pass does not run: training may run them, or an example of another size.

What they read must not shrink unseen. A pass in training mode follows those that it runs; of the others it cannot be
known what they read, so all channels stay that the code around them sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

import torch
from torch import nn

from norton_plugin.channels.grouping import produces
from norton_plugin.channels.label_table import Classes
from norton_plugin.channels.layers import layer_type
from norton_plugin.channels.trace import Trace
from norton_plugin.modules.swap import names_by_identity
from norton_plugin.reasons import Reason


def idle_layers(model: nn.Module, trace: Trace) -> dict[str, nn.Module]:
    """Return the layers of a model, by name, that were not called and none of whose parameters was read.

    Layers are what the graph knows as such, and what reads channels: a table that is looked up by number does not, and
    bare parameters of other modules, such as those of a loss, say nothing of what they are combined with.

    Args:
        model: As it ran under the trace.
        trace: Of one or several passes.
    """
    found = {}
    for module, names in names_by_identity(model).items():
        if module in trace.notes.ran or isinstance(module, torch.jit.ScriptModule | nn.Embedding):
            continue
        if layer_type(module) is None:
            continue
        own = [p for p in module._parameters.values() if p is not None and p in trace.axes.labels]
        if own and not any(id(parameter) in trace.notes.read for parameter in own):
            found[names[0]] = module
    return found


def has_idle_tables(model: nn.Module, trace: Trace) -> bool:
    """Tell whether a table that is looked up by number was not: in training its rows may meet other channels.

    Args:
        model: As it ran under the trace.
        trace: Of its first pass.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return any(table not in trace.notes.ran and id(table.weight) not in trace.notes.read for table in tables)


def surroundings(model: nn.Module, idle: Mapping[str, nn.Module], trace: Trace) -> dict[nn.Module | None, str]:
    """Return the modules whose code may call an idle layer, each with the name of one.

    That is the innermost module around the layer that ran; None stands for the code that runs the model. Modules whose
    code never says the layer's name are left out.

    Args:
        model: As it ran under the trace.
        idle: Its idle layers by name.
        trace: Of its passes.
    """
    modules = dict(model.named_modules())
    said = set().union(*(_said_by(kind) for kind in {type(module) for module in modules.values()}))
    found: dict[nn.Module | None, str] = {}
    for name in idle:
        parts = name.split(".")
        for end in range(len(parts) - 1, -1, -1):
            around = modules[".".join(parts[:end])]
            if around in trace.notes.ran:
                if parts[end] in said:
                    found.setdefault(around, name)
                break
        else:
            if parts[0] in said:
                found.setdefault(None, name)
    return found


def _said_by(kind: type) -> set[str]:
    """Return all names and texts in the code of a class, but what PyTorch wrote and what sets the module up."""
    said: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "torch":
            continue
        for name, held in vars(base).items():
            function = getattr(held, "__func__", getattr(held, "fget", held))
            code = getattr(function, "__code__", None)
            if name != "__init__" and isinstance(code, CodeType):
                said.update(_said_in(code))
    return said


def _said_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _said_in(constant)


def pin_idle(trace: Trace, classes: Classes, idle: Mapping[str, nn.Module]) -> Classes:
    """Pin the channels that idle layers alone produce: no comparison of outputs in evaluation mode could show them.

    Args:
        trace: After its passes.
        classes: The classes of the passes.
        idle: Layers that the pass in evaluation mode did not run.

    Returns:
        The classes with those channels pinned.
    """
    layers = set(idle.values())
    by: dict[bool, Any] = {kind: torch.zeros(len(classes.class_of), dtype=torch.bool) for kind in (True, False)}
    for axis in trace.axes.axes:
        if produces(axis):
            by[axis.owner in layers][classes.class_of[axis.base : axis.base + axis.size]] = True
    lost = by[True] & ~by[False] & (classes.pinned == 0)
    if not bool(lost.any()):
        return classes
    trace.table.pin(torch.nonzero(lost).reshape(-1), Reason.NOT_RUN.because())
    return trace.table.resolve()
