"""What signals do to a run.

While a run is being set up, a signal ends the process immediately. During training, the first
signal stops the run after the current step, and a second one ends the process immediately.

The signals are SIGINT (Ctrl-C), SIGTERM, and SIGHUP, which a closing terminal sends. A signal that
the process was started to ignore, such as SIGHUP under nohup, stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from preprocess.console import clear_live_line
from train.core.distributed import World
from train.run.state import TrainingState

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# With torchrun, one Ctrl-C arrives twice: the terminal sends it to all processes, and torchrun
# forwards it to those that it started. Two signals within this time therefore count as one.
SAME_SIGNAL_S = 3.0


@contextmanager
def end_at_once() -> Iterator[None]:
    """Let a signal inside the block end the process immediately. Use it when nothing must be saved.

    A Python signal handler runs only after the current call of C code returns. A backward pass is
    one such call and can take minutes, so the system's default action is used instead.
    """
    previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
    previous = {signum: handler for signum, handler in previous.items() if handler != signal.SIG_IGN}
    for signum in previous:
        signal.signal(signum, signal.SIG_DFL)
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class StopRequest:
    """A context manager that records a signal. `signum` is its number, or 0 if none has arrived."""

    def __init__(self, state: TrainingState, world: World) -> None:
        self.signum = 0
        self._state, self._world = state, world
        self._previous_handlers: dict[int, object] = {}
        self._received_at = 0.0

    def __enter__(self) -> StopRequest:
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._previous_handlers[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _receive(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum and self._world.size > 1 and now - self._received_at < SAME_SIGNAL_S:
            return
        if self.signum:
            clear_live_line()
            os._exit(128 + signum)
        self.signum, self._received_at = signum, now
        if self._world.is_main:
            # Not print(): the signal may arrive during another print(), and a buffered stream does
            # not allow a second call inside the first.
            with contextlib.suppress(OSError):  # the reader of `2>&1 | tee` ended by the same Ctrl-C
                step, newline = self._state.step + 1, "" if clear_live_line() else "\n"
                message = f"{newline}finishing step {step:,} and saving; a second signal ends the run at once\n"
                os.write(2, message.encode())
