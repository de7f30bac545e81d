"""Let Ctrl-C (SIGINT) and SIGTERM end a command in order: after its cleanup, without a traceback.

A signal raises an exception in the main thread, so that every `finally` and every context manager
is left in order. A second signal would end that cleanup too, and users often press Ctrl-C more than
once. So the signals that follow within REPEAT_S are ignored.

This module imports nothing that takes time: it must be ready before the imports of the command.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 5.0  # a signal after that is a new request, because the exception of the first may be lost in a library


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It ends a command as Ctrl-C does, with another exit status."""


_ends_at = 0.0  # the time until which further signals are ignored


def _raise(number: int, _: Any) -> None:
    global _ends_at
    if time.monotonic() >= _ends_at:
        _ends_at = time.monotonic() + REPEAT_S
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGINT and Terminated for SIGTERM, unless they are ignored.

    A shell starts background jobs with SIGINT ignored. In a thread other than the main one, which
    cannot receive signals, the block runs with the handlers as they are.
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
    """Return the message and the exit status of an interruption, as shells number them."""
    if isinstance(error, Terminated):
        return "terminated; run the same command again to continue", 128 + signal.SIGTERM
    return "interrupted; run the same command again to continue", 128 + signal.SIGINT
