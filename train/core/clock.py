"""When the command of this process started, which is seconds before torch is imported."""

from __future__ import annotations

import time

_has_started = False


def record_start() -> None:
    """Record that this process was started to run one command."""
    global _has_started
    _has_started = True


def take_start() -> float:
    """Return when the command started, on the clock of time.monotonic().

    It is when the process started if `record_start` was called since the last call, and else now,
    as in a process that calls several commands itself.
    """
    import psutil

    global _has_started
    now, age = time.monotonic(), time.time() - psutil.Process().create_time()
    start, _has_started = now - age if _has_started else now, False
    return start


def slowdown() -> float:
    """Return how many times as long as on an idle machine the work of one thread takes, so far in this process."""
    import psutil

    age = time.time() - psutil.Process().create_time()
    return max(age / max(time.process_time(), 1e-3), 1.0)
