"""Signals while training: the first asks for an end after the step, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

from distributed import World
from state import Training


class StopRequest:
    """A context manager; `signum` is the signal that came, 0 before."""

    def __init__(self, training: Training, world: World) -> None:
        self.signum = 0
        self._training, self._world = training, world
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _receive(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum
        if self._world.is_main:
            # Not by print: the signal may have come in the middle of one, and a buffered stream cannot be entered twice.
            with contextlib.suppress(OSError):  # `2>&1 | tee` died of the same Ctrl-C
                os.write(2, f"\nfinishing step {self._training.step + 1:,}, saving; once more to abort\n".encode())
