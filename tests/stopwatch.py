"""A stopwatch for tests: a call takes as long as it needs MACs, and a little for each operation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

SECONDS_PER_MAC = 1e-9


@contextmanager
def counted_macs(
    monkeypatch: pytest.MonkeyPatch, *, overhead: float = 0.0, slower: Callable[[], float] | None = None
) -> Iterator[list[int]]:
    """While entered, all that deploy and latency time takes so long; yields how often each comparison was made.

    Args:
        monkeypatch: Of the test.
        overhead: Seconds of each call, whatever it is.
        slower: Factor of the second of two calls, as of a whole model beside the dense one.
    """
    seen: list[int] = []

    def interleaved(calls: Sequence[Callable[[], Any]], **settings: Any) -> list[list[float]]:
        seen.append(len(calls))
        found = []
        for place, call in enumerate(calls):
            with FlopCounterMode(display=False) as counter:
                call()
            factor = slower() if slower is not None and place == 1 and len(calls) == 2 else 1.0
            found.append([(counter.get_total_flops() / 2 * SECONDS_PER_MAC + overhead) * factor])
        return found

    with monkeypatch.context() as patch:
        patch.setattr("norton_plugin.deploy.latency.interleaved", interleaved)
        yield seen
