"""build_log.json: the times, machine and memory of a build.

It is the only file in which two equal builds may differ.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preprocess.build.receipts import EncodingReport
from preprocess.shards.files import JsonObject


class BuildLog:
    """Measures the phases of a build, and collects facts about how it was made."""

    def __init__(self) -> None:
        self._started = datetime.datetime.now(datetime.UTC)
        self._begin = time.perf_counter()
        self._elapsed_s: dict[str, float] = {}  # by phase
        self._backend: dict[str, str] = {}
        self._worker_memory_bytes = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the time of the `with` block as that of the phase `name`."""
        begin = time.perf_counter()
        yield
        self._elapsed_s[name] = round(time.perf_counter() - begin, 3)

    def add_backend_fallback(self, reason: str) -> None:
        """Record why the fast backend is not used."""
        self._backend["backend_fallback"] = reason

    def add_encoding_reports(self, reports: list[EncodingReport]) -> None:
        """Record the backends that encoded the documents, and the peak memory of the workers."""
        self._backend["backend"] = ", ".join(sorted({report.backend for report in reports}))
        self._worker_memory_bytes = max((report.peak_memory_bytes or 0 for report in reports), default=0)

    def to_json(self, text_bytes: int, num_workers: int) -> JsonObject:
        """Return the content of build_log.json.

        `text_bytes`: UTF-8 bytes of the documents in the build.
        """
        elapsed_s = time.perf_counter() - self._begin
        return {
            **self._backend,
            "started": self._started.isoformat(timespec="seconds"),
            "elapsed_s": round(elapsed_s, 3),
            "elapsed_s_by_phase": self._elapsed_s,
            "text_bytes_per_s": round(text_bytes / elapsed_s),
            "text_bytes_per_s_by_phase": {name: round(text_bytes / s) for name, s in self._elapsed_s.items() if s},
            "workers": num_workers,
            "peak_memory_bytes": {"main": get_peak_memory_bytes(), "largest_worker": self._worker_memory_bytes or None},
            "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        }


def get_peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process so far, or None on Windows."""
    # Not ru_maxrss on Linux: it is at least the memory of the process that started this one.
    with suppress(OSError, IndexError, ValueError):
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS reports bytes, others kilobytes
