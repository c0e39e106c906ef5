"""Names of operations as PyTorch dispatches them, and composite operations in inference mode."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def operation_name(func: Any) -> str:
    """Return the name of an operation without its overload and without the underscore of its in-place form.

    Args:
        func: A ``torch._ops.OpOverload``.

    Returns:
        ``"relu"`` for ``aten::relu_.default``; operations outside ``aten`` keep their namespace, as in
        ``"torchvision::nms"``.
    """
    name = str(func._overloadpacket.__name__).rstrip("_")
    return name if func.namespace == "aten" else f"{func.namespace}::{name}"


def run_decomposed(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """Run a composite operation as the operations it consists of, under the mode.

    In inference mode composite operations arrive whole; elsewhere PyTorch has decomposed them before the mode sees
    them.

    Returns:
        The result; ``NotImplemented`` where the operation is elementary.
    """
    if not torch.is_inference_mode_enabled():
        return NotImplemented
    with mode:
        return func.decompose(*args, **kwargs)
