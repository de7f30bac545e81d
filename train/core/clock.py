"""When the command of this process started, which is seconds before torch is imported."""

from __future__ import annotations

import time

_starts: list[float] = []


def record_start() -> None:
    """Record that the command starts now."""
    _starts[:] = [time.monotonic()]


def take_start() -> float:
    """Return when the command started, on the clock of time.monotonic().

    It is the time of this call if `record_start` was not called since the last one, as in a process
    that calls several commands itself.
    """
    return _starts.pop() if _starts else time.monotonic()
