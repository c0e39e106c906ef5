"""What augmentations keep from one batch to the next, so that a resumed run goes on with the same.

mmengine's checkpoints hold none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

# Of BatchSyncRandomResize, in every config of YOLOX: the size of the batches until the next one is drawn.
_SIZE = "_input_size"
# Of CachedMosaic and CachedMixUp, in every config of RTMDet: images of before that are pasted into others.
_CACHE = "results_cache"
# Where a data set or a transform holds others.
_INNER = ("dataset", "datasets", "pipeline", "transforms")


def batch_sizes(model: nn.Module) -> dict[str, list[int] | None]:
    """Return the sizes that the parts of a model's data preprocessor have drawn for the next batches.

    Args:
        model: Of mmengine, unwrapped.

    Returns:
        For the names of these parts (height, width) in pixels; None where none is drawn yet.
    """
    found = {name: vars(part)[_SIZE] for name, part in _resizing(model)}
    return {name: None if size is None else [int(side) for side in size] for name, size in found.items()}


def take_batch_sizes_(model: nn.Module, sizes: Mapping[str, list[int] | None]) -> None:
    """Go on with the sizes of a run that was stopped; parts that it did not have are left alone."""
    for name, part in _resizing(model):
        if name in sizes:
            size = sizes[name]
            setattr(part, _SIZE, None if size is None else tuple(size))


def _resizing(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    preprocessor = getattr(model, "data_preprocessor", None)
    named = preprocessor.named_modules() if isinstance(preprocessor, nn.Module) else ()
    yield from ((name, part) for name, part in named if _SIZE in vars(part))


def empty_caches_(data: Any) -> None:
    """Take the images of earlier epochs from the caches of all transforms of a data set.

    Loader workers, which start with every epoch, begin with empty ones too.
    """
    for part in parts_of(data):
        cache = getattr(part, _CACHE, None)
        if isinstance(cache, list):
            cache.clear()


def parts_of(data: Any) -> Iterator[Any]:
    """Yield a data set, the data sets that it is made of, and the transforms of all of them, each once."""
    seen: set[int] = set()
    left = [data]
    while left:
        holder = left.pop()
        if holder is None or isinstance(holder, str | bytes) or id(holder) in seen:
            continue
        seen.add(id(holder))
        yield holder
        for name in _INNER:
            inner = getattr(holder, name, None)
            left.extend(inner if isinstance(inner, list | tuple) else [inner])
