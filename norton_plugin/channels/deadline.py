"""The time that a trace may take."""

from __future__ import annotations

import time

from norton_plugin.errors import TracingError
from norton_plugin.reasons import Reason


class Deadline:
    """A moment after which a trace is given up.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float = float("inf")) -> None:
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise a TracingError when the time is over."""
        if time.monotonic() > self._end:
            raise TracingError(Reason.TRACE_TIME.because())
