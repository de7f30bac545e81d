"""How many cores are idle, and what follows for libgomp's busy loops."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.core import threads
from train.core.threads import SPIN_COUNT, choose_spin_count, count_cores, count_idle_cores

needs_proc_stat = pytest.mark.skipif(not threads.STAT.exists(), reason="the system has no /proc/stat")


def write_stat(path: Path, *, busy_ticks: int) -> None:
    """Write a /proc/stat in which the first core of this process has been busy for `busy_ticks`."""
    cores = sorted(os.sched_getaffinity(0))
    lines = [f"cpu{core} {busy_ticks if core == cores[0] else 0} 0 0 900 0 0 0 0 0 0" for core in cores]
    path.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5"]))


@needs_proc_stat
@pytest.mark.parametrize(
    ("busy_ticks", "num_bound", "num_idle"),
    [(0, 4, 4), (10, 4, 3), (20, 4, 2), (100, 4, 1), (100, 64, 4), (620, 64, 2)],  # 64 cores: a quota of 4
)
def test_count_idle_cores_subtracts_the_time_of_other_processes(
    busy_ticks: int, num_bound: int, num_idle: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(num_bound)))
    stat = tmp_path / "stat"
    write_stat(stat, busy_ticks=0)
    monkeypatch.setattr(threads, "STAT", stat)
    monkeypatch.setattr(threads.time, "sleep", lambda _: write_stat(stat, busy_ticks=busy_ticks))
    monkeypatch.setattr(threads.time, "process_time", lambda: 0.0)
    clock = iter([0.0, 0.1])
    monkeypatch.setattr(threads.time, "monotonic", lambda: next(clock))
    assert count_idle_cores(4) == num_idle


@needs_proc_stat
def test_count_idle_cores_sees_a_busy_process() -> None:
    """A process that computes without pause takes at least a quarter of a core, whatever else runs."""
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None and busy.stdout.readline()
        before, began = threads._read_busy_s(), time.monotonic()
        time.sleep(0.3)
        after = threads._read_busy_s()
        assert before is not None and after is not None
        assert after - before > 0.25 * (time.monotonic() - began)
    finally:
        busy.kill()
        busy.wait()


def test_count_idle_cores_without_proc_stat_is_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "STAT", tmp_path / "missing")
    assert count_idle_cores(7) == 7


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("10000 100000", 1), ("max 100000", 8), (None, 8)]
)
def test_count_cores_respects_the_quota_of_a_container(
    quota: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(f"{quota}\n")
    monkeypatch.setattr(threads, "QUOTA", file)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert count_cores() == expected


@pytest.mark.parametrize(("num_idle", "expected"), [(8, "5000"), (6, "5000"), (5, "1000"), (1, "1000")])
def test_choose_spin_count_is_long_on_an_idle_machine(
    num_idle: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SPIN_COUNT, raising=False)
    monkeypatch.setattr(threads, "count_cores", lambda: 8)
    monkeypatch.setattr(threads, "count_idle_cores", lambda _: num_idle)
    choose_spin_count()
    assert os.environ.pop(SPIN_COUNT) == expected


def test_choose_spin_count_keeps_the_users_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPIN_COUNT, "7")
    choose_spin_count()
    assert os.environ[SPIN_COUNT] == "7"
