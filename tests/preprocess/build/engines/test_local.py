"""Engines: the results, errors and deaths of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocess.build.engines.interface import Task, WorkerDied
from preprocess.build.engines.local import ProcessEngine, SerialEngine
from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.disk_file import InputChanged
from preprocess.stages.encode import BackendMismatch


def double(x: int) -> int:
    time.sleep(0.01 * (x % 3))
    return 2 * x


def fail(kind: str) -> None:
    raise {
        "folio": FolioError("the reason"),
        "misuse": MisuseError("the reason"),
        "changed": InputChanged("the reason"),
        "os": OSError(28, "No space left on device", "/x"),
        "mismatch": BackendMismatch("the reason"),
        "other": ZeroDivisionError("the reason"),
    }[kind]


def die(signal_: int) -> None:
    os.kill(os.getpid(), signal_)
    time.sleep(30)


def make_tasks(count: int) -> list[Task]:
    return [Task(f"partition {i}", double, (i,), i) for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_engine_returns_every_result_once(workers: int) -> None:
    with ProcessEngine(workers) if workers > 1 else SerialEngine() as engine:
        for _ in range(2):  # an engine runs the tasks of several phases
            results = sorted((task.key, result) for task, result in engine.run(make_tasks(17)))
            assert results == [(i, 2 * i) for i in range(17)]
        assert list(engine.run([])) == []


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("folio", FolioError, "the reason"),
        ("misuse", MisuseError, "the reason"),
        (
            "changed",
            InputChanged,
            "^the reason; wait until no program writes to the file, then run the same command again$",
        ),
        ("os", OSError, "No space left"),
        ("mismatch", BackendMismatch, "the reason"),
        ("other", RuntimeError, "ZeroDivisionError: the reason"),
    ],
)
def test_exception_of_a_worker_is_raised_in_the_main_process(kind: str, error: type, message: str) -> None:
    with ProcessEngine(2) as engine, pytest.raises(error, match=message) as caught:
        list(engine.run([*make_tasks(3), Task("partition 3", fail, (kind,)), *make_tasks(50)]))
    assert kind != "os" or caught.value.filename == "/x"


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSEGV])
def test_dead_worker_is_reported_at_once(signal_: signal.Signals) -> None:
    begin = time.monotonic()
    message = rf"the worker on partition 9 died \({signal_.name}.*run the same command again"
    with ProcessEngine(2) as engine, pytest.raises(WorkerDied, match=message):
        list(engine.run([*make_tasks(3), Task("partition 9", die, (signal_,)), *make_tasks(3)]))
    assert time.monotonic() - begin < 20


def test_leaving_the_engine_ends_its_workers() -> None:
    with ProcessEngine(2) as engine:
        processes = [worker.process for worker in engine._workers]
        engine._workers[0].send(Task("long", time.sleep, (60,)))
        time.sleep(0.2)
    assert not any(process.is_alive() for process in processes)


def test_workers_end_when_the_main_process_is_killed() -> None:
    """A killed process cannot end its workers. They end because the kernel closes their pipes."""
    code = (
        "import time\nfrom preprocess.build.engines.local import ProcessEngine\n"
        "engine = ProcessEngine(2)\nprint(*[w.process.pid for w in engine._workers], flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "the workers are still running"
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def echo(data: bytes) -> bytes:
    return data


def test_large_tasks_and_large_results_do_not_block_each_other() -> None:
    data = os.urandom(4 << 20)  # much more than the buffer of a pipe
    with ProcessEngine(2) as engine:
        results = [result for _, result in engine.run([Task(str(i), echo, (data,)) for i in range(12)])]
    assert results == [data] * 12
