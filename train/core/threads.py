"""Measure how many cores are idle, and choose how long the threads of PyTorch wait in a busy loop.

On a CPU, PyTorch divides every operation among its threads, which wait for each other at its end.
This module does not import torch, because the waiting time must be set before that.

Number of threads: a thread that shares its core with another program makes all other threads wait.
If one other process is busy on two cores, two threads are slower than one. So a run should not have
more threads than idle cores.

Waiting time: a thread that waits in a busy loop continues sooner than one that sleeps, and waking up
takes longer than adding two small matrices. If other programs are running, however, the busy loop
takes time from the thread that the others wait for. libgomp, PyTorch's thread library on Linux, reads
the setting once, when torch is imported. `bench/threads.py` measures both effects.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

MEASUREMENT_S = 0.1
SPIN_COUNT = "GOMP_SPINCOUNT"  # turns of the busy loop
LONG_WAIT, SHORT_WAIT = "5000", "1000"
IDLE_FRACTION = 0.75  # if at least this fraction of the cores is idle, threads wait longer
NUM_THREADS = "OMP_NUM_THREADS"  # the number that the user, or torchrun, sets for all programs
STAT, QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")


def choose_spin_count() -> None:
    """Set GOMP_SPINCOUNT for this process, unless it is set. Torch reads it when it is imported."""
    if SPIN_COUNT not in os.environ:
        num_cores = count_cores()
        is_idle = count_idle_cores(num_cores) >= IDLE_FRACTION * num_cores
        os.environ[SPIN_COUNT] = LONG_WAIT if is_idle else SHORT_WAIT


def count_cores() -> int:
    """Return how many cores this process may use: those of its affinity, or fewer in a container with a CPU quota."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
        return min(num_cores, max(math.ceil(int(quota) / int(period)), 1))
    except (OSError, ValueError):  # no control groups, or "max"
        return num_cores


def count_idle_cores(num_cores: int) -> int:
    """Return how many of `num_cores` other processes leave idle, at least 1, measured in 0.1 s.

    If a quota makes `num_cores` fewer than the cores that this process is bound to, the others can run beside it.
    If the system does not report the time of each core (macOS and Windows), return `num_cores`.
    """
    busy_before, own_before, began = _read_busy_s(), time.process_time(), time.monotonic()
    if busy_before is None:
        return num_cores
    time.sleep(MEASUREMENT_S)
    busy_s, own_s = (_read_busy_s() or 0.0) - busy_before, time.process_time() - own_before
    num_bound = max(len(os.sched_getaffinity(0)), num_cores)
    return min(max(num_bound - round((busy_s - own_s) / (time.monotonic() - began)), 1), num_cores)


def _read_busy_s() -> float | None:
    """Return how long the cores of this process have been busy since the system started, or None if it is not known."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for name, *values in (line.split() for line in lines if line.startswith("cpu")):
        if name in names:
            user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, values[:8])
            ticks += user + nice + system + interrupts + soft_interrupts + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
