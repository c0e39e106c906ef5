"""Channels of what modules without weights return, such as sine encodings of positions: they can be selected.

Such a module computes from sizes, masks and constants. A dimension of its output that none of its inputs has is a width
of its own; the positions along it get labels when the module returns, and a cut keeps a selection of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.channels.label_maps import spread, varying
from norton_plugin.channels.trace import Trace
from norton_plugin.modules.output_selection import has_weights


def label_returned(trace: Trace, module: nn.Module, inputs: Any, output: Any) -> None:
    """Give the output of a module without weights labels along a width of its own, where it has none yet.

    Args:
        trace: Takes the labels.
        module: Which has just run.
        inputs: All its arguments.
        output: What it returned.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or not trace.knows(output):
        return
    labels = trace.labels_of(output)
    if labels.maps or labels.stays or labels.emptied:
        return
    if isinstance(module, torch.jit.ScriptModule) or has_weights(module):
        return
    dim = _own_width(trace, inputs, output)
    if dim is None:
        return
    vector = trace.axes.returned(module, dim, output.shape[dim])
    if vector is not None:
        trace.set_labels(output, labels._replace(maps=(spread(vector, output.shape, dim),)))


def _own_width(trace: Trace, inputs: Any, output: Tensor) -> int | None:
    """Return the one dimension of an output whose size none of the inputs has, but as its channels.

    None where the output has no dimension more than an input has without its channels: layers that resize or pool.
    """
    known: set[int] = set()
    most = 0
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            channels = {d for label_map in trace.labels_of(leaf).maps for d in varying(label_map)}
            sizes = [size for d, size in enumerate(leaf.shape) if d not in channels]
            most = max(most, len(sizes))
        else:
            sizes = [leaf] if isinstance(leaf, int) else list(leaf) if isinstance(leaf, torch.Size) else []
        known.update(sizes)
    own = [d for d, size in enumerate(output.shape) if size > 1 and size not in known]
    return own[0] if len(own) == 1 and output.dim() > most else None
