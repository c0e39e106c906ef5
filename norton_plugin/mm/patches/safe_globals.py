"""Let torch >= 2.6 read the checkpoints that mmengine 0.10 writes, with ``weights_only`` left on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ("min", "max", "current", "mean")


def allow_own_checkpoints() -> None:
    """Register the few harmless classes that mmengine pickles beside the weights.

    A checkpoint of mmengine holds the history of its logs: ``HistoryBuffer`` objects made of numpy arrays, with
    references to four of their methods, which pickle stores as calls of ``getattr`` (mmengine issue 1655).
    ``getattr`` itself is not allowed: its name is bound to a function that returns those four methods only.
    """
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    allowed: list[Any] = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    core = getattr(np, "_core", None) or np.core
    reconstruct, scalar = core.multiarray._reconstruct, core.multiarray.scalar
    # numpy moved these two from numpy.core to numpy._core; checkpoints of either age are read
    for package in ("numpy.core", "numpy._core"):
        allowed += [(reconstruct, f"{package}.multiarray._reconstruct"), (scalar, f"{package}.multiarray.scalar")]
    allowed.append((_statistics_method, "builtins.getattr"))
    torch.serialization.add_safe_globals(allowed)


def _statistics_method(owner: Any, name: str) -> Callable[..., Any]:
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise AttributeError(f"a checkpoint asks for {name!r} of {owner!r}, which mmengine does not store")
    return getattr(owner, name)
