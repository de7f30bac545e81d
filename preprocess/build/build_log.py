"""build_log.json: clock times, machine and memory, the only file in which two equal builds may differ."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class BuildLog:
    """Collects what a build took; `finish` gives what the file holds."""

    def __init__(self) -> None:
        self._started = datetime.datetime.now(datetime.UTC)
        self._clock = time.perf_counter()
        self._phases: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._worker_bytes = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase of the build."""
        begin = time.perf_counter()
        yield
        self._phases[name] = round(time.perf_counter() - begin, 3)

    def note(self, key: str, value: str) -> None:
        """A fact about how this build was made that changed none of its bytes."""
        self._notes[key] = value

    def note_memory(self, worker_bytes: list[int | None]) -> None:
        """The most memory that each of several tasks saw its process hold."""
        self._worker_bytes = max([self._worker_bytes, *(n or 0 for n in worker_bytes)])

    def finish(self, text_bytes: int, num_workers: int) -> dict[str, Any]:
        """What build_log.json holds; `text_bytes`: UTF-8 bytes of the documents that were kept."""
        elapsed_s = time.perf_counter() - self._clock
        return {
            **self._notes,
            "started": self._started.isoformat(timespec="seconds"),
            "elapsed_s": round(elapsed_s, 3),
            "elapsed_s_by_phase": self._phases,
            "text_bytes_per_s": round(text_bytes / elapsed_s),
            "text_bytes_per_s_by_phase": {name: round(text_bytes / s) for name, s in self._phases.items() if s},
            "workers": num_workers,
            "peak_memory_bytes": {"main": peak_memory_bytes(), "largest_worker": self._worker_bytes or None},
            "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        }


def peak_memory_bytes() -> int | None:
    """The most memory this process held so far; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
