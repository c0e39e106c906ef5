"""One row of the coverage: a model compressed in this process, and what came of it.

Status: ``full`` every group of channels was pruned but the model's outputs and those too small to round; ``partial``
some groups were left, ``decompose-only`` no channel went, ``none`` nothing could be done, ``not buildable`` the model
needs CUDA operators or packages that are absent, ``error`` an exception that is not one of ours, ``timeout`` and
``memory`` the limits.
"""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

STATUSES = ("full", "partial", "decompose-only", "none", "not buildable", "error", "timeout", "memory")
# What exceptions say that stand for a limit on memory.
OUT_OF_MEMORY = ("MemoryError", "allocate memory", "bad_alloc")


def load_disturbed(source: str, **settings: Any) -> Any:
    """Build a model on one thread from a fixed seed, with random numbers in the place of constant parameters.

    Fresh norms, layer scales and zero-initialised heads are constant and would hide mistakes from the verification.

    Args:
        source: Such as ``timm:resnet18``.
        **settings: Of `norton_plugin.zoo.load_source`.

    Returns:
        The source that `norton_plugin.zoo.load_source` gives.

    Raises:
        NortonError: The model cannot be built.
    """
    import torch

    from norton_plugin.zoo import load_source

    torch.set_num_threads(1)
    torch.manual_seed(0)
    loaded = load_source(source, **settings)
    for parameter in loaded.model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return loaded


def quick_recipe(*, keep: float, rank: int = 2, time_limit: float) -> Any:
    """Return a recipe whose decomposition is fast: at random weights, more sweeps find nothing better.

    Args:
        keep: Share of the channels to keep, in (0, 1].
        rank: Of every block. At random weights no useful rank reaches an error target; 2 saves MACs mostly.
        time_limit: Seconds that tracing may take, and that verification may take.
    """
    from norton_plugin.recipe import Decomposition, Pruning, Recipe

    decomposition = Decomposition(rank=rank, sweeps=20, restarts=1)
    return Recipe(decomposition=decomposition, pruning=Pruning(keep=keep), time_limit=time_limit)


def examine(source: str, keep: float, rank: str, time_limit: float) -> dict[str, Any]:
    """Compress one model and describe the outcome.

    Args:
        source: Such as ``timm:resnet18``.
        keep: Share of the channels to keep, in (0, 1].
        rank: A number, or ``auto`` for 2.
        time_limit: Seconds for the model; tracing and verification take a quarter of it each, 60 s at most.

    Returns:
        The row: JSON-able, the cells of the page by their names.
    """
    from norton_plugin import NortonError, compress

    row: dict[str, Any] = {"model": source}
    start = time.perf_counter()
    try:
        loaded = load_disturbed(source)
    except NortonError as error:
        return row | failure("not buildable", str(error))
    try:
        chosen = 2 if rank == "auto" else int(rank)
        recipe = quick_recipe(keep=keep, rank=chosen, time_limit=min(60.0, time_limit / 4))
        start = time.perf_counter()
        _, report = compress(loaded.model, loaded.example_inputs, recipe, forward_fn=loaded.forward_fn)
        row |= _outcome(report)
    except NortonError as error:
        row |= failure("none", str(error))
    except Exception as error:  # an exception of another kind is what this tool looks for
        row |= failure("error", f"{type(error).__name__}: {error}")
    row["seconds"] = round(time.perf_counter() - start, 1)
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def failure(status: str, reason: str) -> dict[str, Any]:
    """Return the cells of a model that was not compressed; a lack of memory has a status of its own."""
    memory = any(words in reason for words in OUT_OF_MEMORY)
    return {"status": "memory" if memory else status, "reason": reason[:300]}


def without_details(reason: str) -> str:
    """Return a reason without what differs from group to group: sizes of differences, and words in brackets."""
    return re.sub(r" by (inf|[\d.e+-]+)(?= )| \(.*", "", reason)


def counted_reasons(reasons: Iterable[tuple[int, str]]) -> str:
    """Return the three most frequent reasons with their counts, each once, in the words of its first group.

    Args:
        reasons: How often, and the words.
    """
    counts: Counter[str] = Counter()
    words: dict[str, str] = {}
    for count, reason in reasons:
        counts[without_details(reason)] += count
        words.setdefault(without_details(reason), reason)
    return "; ".join(f"{count} x {words[key]}" for key, count in counts.most_common(3))


def _outcome(report: Any) -> dict[str, Any]:
    """Cells of a compressed model."""
    from norton_plugin.surgery.report import blocking

    layers, groups = report.decomposition.layers, report.pruning.groups
    left = blocking(report.pruning.skipped)
    return {
        "status": report.status,
        "decomposed": f"{len(layers)}/{len(layers) + len(report.decomposition.skipped)}",
        "pruned": f"{len(groups)}/{len(groups) + len(left)}",
        "macs_before": report.macs_before,
        "macs_after": report.macs_after,
        "macs_down": round(100 * (1 - report.macs_after / report.macs_before), 1),
        "narrowest": round(100 * min((layer.kept for layer in report.layers), default=1.0), 1),
        "verifying": round(report.verify_seconds, 1),
        "error": report.pruning.largest_error,
        "reason": counted_reasons((1, s.reason) for s in left),
        "codes": dict(Counter(s.code for s in left).most_common()),
        "rule_failures": [cause.text for cause in report.pruning.rule_failures],
    }
