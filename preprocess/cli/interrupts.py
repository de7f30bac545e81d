"""Let Ctrl-C (SIGINT) and SIGTERM end a command after its cleanup and without a traceback.

A signal raises an exception in the main thread, so every `finally` block and context manager runs.
A second signal would interrupt this cleanup, and users often press Ctrl-C more than once. So
signals that follow within REPEAT_S are ignored.

The handlers must be set before the command is imported, so this module imports nothing slow.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 5.0  # a later signal raises again, because a library may have caught the first exception


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM. It ends a command as Ctrl-C does, but with another exit status."""


_ends_at = 0.0  # the time until which further signals are ignored


def _raise(number: int, _: Any) -> None:
    global _ends_at
    if time.monotonic() >= _ends_at:
        _ends_at = time.monotonic() + REPEAT_S
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGINT and Terminated for SIGTERM during the `with` block.

    A signal that the process ignores stays ignored; a shell starts background jobs with SIGINT
    ignored. In a thread other than the main one no handler is changed, because Python runs signal
    handlers only in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in previous.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def explain(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return the message and the exit status of an interruption: 128 + the number of the signal."""
    if isinstance(error, Terminated):
        return "terminated; run the same command again", 128 + signal.SIGTERM
    return "interrupted; run the same command again", 128 + signal.SIGINT
