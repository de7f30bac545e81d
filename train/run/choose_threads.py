"""The number of threads of a run on a CPU: chosen at its start, and kept when it continues.

Sums of floating-point numbers depend on how they are divided among threads. A run that continues
therefore uses the number that its checkpoint has, and logs the same losses to the last bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import torch

from train.config import Config
from train.core.threads import NUM_THREADS, count_cores, count_idle_cores

TRIAL_S = 0.3  # of passes with each number of threads
MIN_PASSES = 3
MAX_PASS_S = 1.0  # a longer pass consists of large operations, for which all idle cores are the fastest
MAX_TIME_RATIO = 0.95  # another number is used if its time is below this fraction of the time with idle cores
STOP_TIME_RATIO = 1.2  # fewer threads are not tried after a time above this multiple of the best one


def set_initial_threads(config: Config) -> None:
    """Set the number of threads before anything is measured: as many as there are idle cores.

    The setting `num_threads` and the environment variable OMP_NUM_THREADS take precedence.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    elif NUM_THREADS not in os.environ:
        torch.set_num_threads(count_idle_cores(min(count_cores(), torch.get_num_threads())))


def choose_num_threads(trial: Callable[[], object], *, pass_s: float) -> str:
    """Set the number of threads with which `trial`, a training pass, is fastest, and return a line about it.

    `pass_s`: the seconds of a pass with the current number of threads, which is that of idle cores. If it
    is more than MAX_PASS_S, nothing is tried. Otherwise all cores are tried, and then half, a quarter,
    and so on of the current number, until a pass is clearly slower.
    """
    idle = torch.get_num_threads()
    if pass_s > MAX_PASS_S:
        return _describe(idle, {})
    times = {idle: _time(trial)}
    num_cores = count_cores()
    for num_threads in (*([num_cores] if num_cores > idle else []), *_halves(idle)):
        torch.set_num_threads(num_threads)
        times[num_threads] = _time(trial)
        if num_threads < idle and times[num_threads] > STOP_TIME_RATIO * min(times.values()):
            break
    best = select(times, idle)
    torch.set_num_threads(best)
    return _describe(best, times)


def select(times: dict[int, float], idle: int) -> int:
    """Return the best number of threads. `times`: the seconds of a pass by number of threads.

    It is `idle`, the number of idle cores, unless another number is clearly faster. So two runs of the
    same command usually have the same number.
    """
    best = min(times, key=lambda num_threads: times[num_threads])
    return best if times[best] < MAX_TIME_RATIO * times[idle] else idle


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number


def _time(trial: Callable[[], object]) -> float:
    """Return the mean seconds of a call of `trial`. The first call is not counted."""
    trial()
    began, count = time.monotonic(), 0
    while count < MIN_PASSES or time.monotonic() - began < TRIAL_S:
        trial()
        count += 1
    return (time.monotonic() - began) / count


def _describe(best: int, times: dict[int, float]) -> str:
    threads = "1 thread" if best == 1 else f"{best} threads"
    others = [f"{seconds / times[best]:.2f} times as long with {n}" for n, seconds in times.items() if n != best]
    return f"{threads} on {count_cores()} cores" + (f"; a pass takes {', '.join(others)}" if others else "")
