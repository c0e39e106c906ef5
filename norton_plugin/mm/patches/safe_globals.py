"""Let mmengine 0.10 load its own checkpoints under torch >= 2.6, with ``weights_only`` left on.

All of mmengine's loads, whatever the prefix of the path (files, http, s3, petrel, model zoos), go through
``CheckpointLoader.load_checkpoint``: those of ``Runner``, ``load_checkpoint``, ``init_detector``, inferencers and
``init_cfg``. Importing :mod:`norton_plugin.mm` wraps that one method. For the time of a call, torch may read the logs
in the file as plain numbers (:mod:`norton_plugin.zoo.mmengine_globals`); no other load of the process sees a
difference. The numbers are then put back into the objects that mmengine resumes from. (http addresses are loaded by
``torch.hub``, which itself leaves ``weights_only`` off; there is nothing to put back then.)
"""

from __future__ import annotations

import functools
import pickle
from collections import OrderedDict
from typing import Any

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from norton_plugin.zoo.mmengine_globals import LogHistory, NumberArray, mmengine_globals

_MARK = "_reads_logs_safely"


def install() -> None:
    """Wrap mmengine's method; a second call changes nothing."""
    original = CheckpointLoader.load_checkpoint.__func__
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def load_checkpoint(cls: type[CheckpointLoader], *args: Any, **options: Any) -> Any:
        with mmengine_globals():
            content = original(cls, *args, **options)
        return restored(content)

    setattr(load_checkpoint, _MARK, True)
    CheckpointLoader.load_checkpoint = classmethod(load_checkpoint)


def restored(content: Any) -> Any:
    """Put numpy arrays and ``HistoryBuffer`` objects in the place of what stood for them during the load.

    Args:
        content: Of a file; its dicts and lists are changed in place.

    Returns:
        The same, or a new tuple or object where the whole content is one.

    Raises:
        UnpicklingError: An array or a log was left empty, or the content is nested too deeply.
    """
    try:
        return _restored(content, {})
    except RecursionError as error:
        raise pickle.UnpicklingError(
            "the checkpoint is nested too deeply; mmengine does not write this: do not load the file"
        ) from error


def _restored(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Return one value; ``done`` holds values and results by identity: what was shared stays shared, and cycles end."""
    if id(value) in done:
        return done[id(value)][1]
    new = value
    if isinstance(value, NumberArray | LogHistory):
        new = _object_of(value)
    elif type(value) in (dict, OrderedDict):
        done[id(value)] = value, value
        for key, old in list(value.items()):
            value[key] = _restored(old, done)
    elif type(value) is list:
        done[id(value)] = value, value
        value[:] = [_restored(old, done) for old in value]
    elif type(value) is tuple:
        items = tuple(_restored(old, done) for old in value)
        new = items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    else:
        return value
    done[id(value)] = value, new
    return new


def _object_of(value: NumberArray | LogHistory) -> Any:
    found = value.value if isinstance(value, NumberArray) else value.values
    if found is None:
        raise pickle.UnpicklingError("the checkpoint holds an array or a log without content; it is damaged")
    if isinstance(value, NumberArray):
        return found
    return HistoryBuffer(found, value.counts, value.max_length)
