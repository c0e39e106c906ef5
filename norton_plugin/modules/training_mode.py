"""Running a model in training mode without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from norton_plugin.modules.run_state import preserved_state


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """While entered, the model is in training mode; attributes, flags and buffers come back."""
    with preserved_state(model):
        model.train()
        yield


def run_training(run: Callable[[Any], Any], example_inputs: Any) -> Any:
    """Run a model that is in training mode on its example, or on two copies of it.

    Norms of a map of a single pixel need more than one image while they train.

    Args:
        run: Runs the model on inputs.
        example_inputs: Tensors, nested in any way.

    Returns:
        What the model returns.

    Raises:
        Exception: That of the second try, where both fail.
    """
    try:
        return run(example_inputs)
    except Exception:
        return run(tree_map(_twice, example_inputs))


def _twice(leaf: Any) -> Any:
    return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() > 1 else leaf
