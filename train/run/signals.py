"""Signals while training: the first asks for an end after the step, the second ends the process at once.

Ctrl-C, an order to terminate, and the end of the terminal, unless that is ignored, as under nohup.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from types import FrameType

from train.core.distributed import World
from train.run.state import Training

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP
# A terminal sends Ctrl-C to torchrun and to all that it started, and torchrun passes it on: twice is once.
SAME_SIGNAL_S = 3.0


class StopRequest:
    """A context manager; `signum` is the signal that came, 0 before."""

    def __init__(self, training: Training, world: World) -> None:
        self.signum = 0
        self._training, self._world = training, world
        self._before: dict[int, object] = {}
        self._came_s = 0.0

    def __enter__(self) -> StopRequest:
        for signum in SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _receive(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum and self._world.size > 1 and now - self._came_s < SAME_SIGNAL_S:
            return
        if self.signum:
            os._exit(128 + signum)
        self.signum, self._came_s = signum, now
        if self._world.is_main:
            # Not by print: the signal may have come in the middle of one, and a buffered stream cannot be entered twice.
            with contextlib.suppress(OSError):  # `2>&1 | tee` died of the same Ctrl-C
                os.write(2, f"\nfinishing step {self._training.step + 1:,}, saving; once more to abort\n".encode())
