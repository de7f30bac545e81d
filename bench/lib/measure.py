"""Run commands as fresh processes, and measure their time, CPU time and memory.

Time is wall clock from before the process starts until it has ended, so it includes start-up and
imports. Memory is the largest sum of unique set sizes (USS) over the process and its descendants,
sampled every 50 ms. Reading the USS takes up to a tenth of a machine with two cores, so memory is
measured in a separate run, whose time is not reported. CPU time includes descendants.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_INTERVAL_S = 0.05
LOG_TAIL_CHARACTERS = 3000

Job = Callable[[Path], list[str]]  # takes a fresh folder and returns the command that works in it


@dataclass
class Measurement:
    """What was measured of one process, from start to end."""

    elapsed_s: float
    cpu_s: float
    peak_bytes: int  # 0 without memory
    with_memory: bool
    result: Any = None  # what was read from the job's folder before it was deleted


@dataclass
class _Sampler:
    """A thread that samples the CPU time, and with `with_memory` the USS, of a process tree until `stop`."""

    pid: int
    with_memory: bool
    peak_bytes: int = 0
    cpu_s_by_pid: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_done, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _sample_until_done(self) -> None:
        root = psutil.Process(self.pid)
        while not self._done.wait(SAMPLE_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, self._sample(root))

    def _sample(self, root: psutil.Process) -> int:
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.Error:
            return 0
        total_bytes = 0
        for process in processes:
            try:
                total_bytes += process.memory_full_info().uss if self.with_memory else 0
                times = process.cpu_times()
            except psutil.Error:
                continue  # it has ended in the meantime
            self.cpu_s_by_pid[process.pid] = times.user + times.system
        return total_bytes


def copy_environment() -> dict[str, str]:
    """Return the environment variables without PYTHONDONTWRITEBYTECODE, which users rarely set.

    With it, each process compiles Folio's modules again, which takes 0.2 s of processor time.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(command: Sequence[str], log: Path, *, with_memory: bool) -> Measurement:
    """Run `command` in the root of the repository, with its output in `log`, and measure it.

    If the command fails, exit with its status and the end of the log.
    """
    os.sync()  # so that this run does not wait for the writes of the previous one
    with open(log, "wb") as file:
        begin = perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=copy_environment())
        sampler = _Sampler(process.pid, with_memory)
        # Wait without reaping: the pid stays valid until the sampler has stopped.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        elapsed_s = perf_counter() - begin
    sampler.stop()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
        sys.exit(f"{' '.join(command)} failed with exit status {process.returncode}:\n{tail}")
    # wait4 misses descendants that were never waited for; the sampler misses the last 50 ms of each process.
    cpu_s = max(usage.ru_utime + usage.ru_stime, sum(sampler.cpu_s_by_pid.values()))
    return Measurement(elapsed_s, cpu_s, sampler.peak_bytes, with_memory)


@contextmanager
def fresh_folder(scratch: Path) -> Iterator[Path]:
    """Create an empty folder in `scratch`, and delete it after the block."""
    scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix="run-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_job(
    job: Job, scratch: Path, read_result: Callable[[Path], Any] | None = None, *, with_memory: bool = True
) -> Measurement:
    """Run `job` in a fresh folder, call `read_result` with the folder, and delete the folder."""
    with fresh_folder(scratch) as folder:
        measurement = measure(job(folder), folder / "log.txt", with_memory=with_memory)
        measurement.result = None if read_result is None else read_result(folder)
    return measurement


def run_alternately(
    jobs: dict[str, Job],
    repeat: int,
    scratch: Path,
    read_result: Callable[[Path], Any] | None = None,
    *,
    rest_s: float = 0.0,
) -> dict[str, list[Measurement]]:
    """Run the jobs in turn (A, B, A, B): once to measure memory, then `repeat` times to measure time.

    Each run begins `rest_s` seconds after the files of the previous one were deleted.
    """
    measurements: dict[str, list[Measurement]] = {name: [] for name in jobs}
    for turn in range(repeat + 1):
        for name, job in jobs.items():
            time.sleep(rest_s)
            measurement = run_job(job, scratch, read_result, with_memory=turn == 0)
            measurements[name].append(measurement)
            print(f"  {name}: {measurement.elapsed_s:.2f} s", file=sys.stderr, flush=True)
    return measurements


def select_timed(measurements: list[Measurement]) -> list[Measurement]:
    """Return the runs whose time is reported: those that did not measure memory, or all if there are no others."""
    return [measurement for measurement in measurements if not measurement.with_memory] or measurements


def reset_peak_memory(pid: int) -> None:
    """Make `read_peak_memory` count from now on. Only Linux supports it; elsewhere this does nothing."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def read_peak_memory(pid: int) -> int | None:
    """Return the largest resident set of a process in bytes, since its start or `reset_peak_memory`.

    Returns None if the system does not report it, or if the process has just ended.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    peak_kb = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak_kb[1]) * 1024 if peak_kb else None


def read_once(paths: Sequence[Path]) -> None:
    """Read the files, so that all runs find them in the page cache."""
    for path in paths:
        with open(path, "rb") as file:
            while file.read(16 << 20):
                pass
