"""Where tasks run: results, errors and deaths come back, named, from any number of workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.engines.local import InProcess, ProcessPool, Task, WorkerDied
from preprocess.errors import FolioError, MisuseError
from preprocess.stages.encode import BackendMismatch


def double(x: int) -> int:
    time.sleep(0.01 * (x % 3))
    return 2 * x


def fail(kind: str) -> None:
    raise {
        "folio": FolioError("told"), "misuse": MisuseError("told"), "os": OSError(28, "No space left on device", "/x"),
        "mismatch": BackendMismatch("told"), "other": ZeroDivisionError("told"),
    }[kind]  # fmt: skip


def die(signal_: int) -> None:
    os.kill(os.getpid(), signal_)
    time.sleep(30)


def tasks(count: int) -> list[Task]:
    return [Task(f"partition {i}", double, (i,), i) for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_comes_back_once(workers: int) -> None:
    with ProcessPool(workers) if workers > 1 else InProcess() as pool:
        for _ in range(2):  # a pool serves several phases
            assert sorted((task.key, result) for task, result in pool.run(tasks(17))) == [(i, 2 * i) for i in range(17)]
        assert list(pool.run([])) == []


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("folio", FolioError, "told"),
        ("misuse", MisuseError, "told"),
        ("os", OSError, "No space left"),
        ("mismatch", BackendMismatch, "told"),
        ("other", RuntimeError, "ZeroDivisionError: told"),
    ],
)
def test_what_a_worker_raises_is_raised_here(kind: str, error: type, message: str) -> None:
    with ProcessPool(2) as pool, pytest.raises(error, match=message) as caught:
        list(pool.run([*tasks(3), Task("partition 3", fail, (kind,)), *tasks(50)]))
    assert kind != "os" or caught.value.filename == "/x"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_named_at_once(how: signal.Signals) -> None:
    begin = time.monotonic()
    with (
        ProcessPool(2) as pool,
        pytest.raises(WorkerDied, match=rf"the worker on partition 9 died \({how.name}.*run the same command again"),
    ):
        list(pool.run([*tasks(3), Task("partition 9", die, (how,)), *tasks(3)]))
    assert time.monotonic() - begin < 20


def test_leaving_ends_the_workers() -> None:
    with ProcessPool(2) as pool:
        processes = [worker.process for worker in pool._workers]
        pool._workers[0].give(Task("long", time.sleep, (60,)))
        time.sleep(0.2)
    assert not any(process.is_alive() for process in processes)


def test_workers_end_when_the_main_process_is_gone(tmp_path: Path) -> None:
    """Killed, it can end nobody: its workers see their pipes close."""
    import subprocess
    import sys

    code = (
        "import os, time\nfrom preprocess.build.engines.local import ProcessPool, Task\n"
        "pool = ProcessPool(2)\nprint(*[w.process.pid for w in pool._workers], flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their build"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        state: Any = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def echo(data: bytes) -> bytes:
    return data


def test_large_tasks_and_large_results_do_not_wait_for_each_other() -> None:
    data = os.urandom(4 << 20)  # twenty times what a pipe holds, both ways
    with ProcessPool(2) as pool:
        results = [result for _, result in pool.run([Task(str(i), echo, (data,)) for i in range(12)])]
    assert results == [data] * 12
