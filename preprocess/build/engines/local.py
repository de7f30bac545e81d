"""Engines that run tasks on this machine: in the main process, or in worker processes.

multiprocessing.Pool waits forever for the result of a worker that was killed, for example by Linux
when memory runs out. So ProcessEngine has one pipe per worker, and waits for all pipes and
processes at the same time. If a worker dies, the build ends at once with a message that names the
task.

Workers are started by a fork server, a small process that has imported the libraries and is forked
for each worker. A new worker is then ready at once; starting Python and importing would take half a
second each. Forking the main process itself is unsafe, because its threads (Arrow's, for example)
may hold locks at that moment, and they would stay locked in the copy. Windows cannot fork and
starts new interpreters.

Each worker has a second task in its queue, so that it never waits for the main process. It uses one
thread, because the workers together already occupy all cores.

A small build needs no worker, so multiprocessing is imported when the first one is needed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from preprocess.build.engines.exceptions import describe_exception, import_exception
from preprocess.build.engines.interface import Engine, Task, WorkerDied, Workload
from preprocess.build.engines.unused_libraries import leave_out_pandas

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

START_METHOD = "spawn" if os.name == "nt" else "forkserver"
PRELOADED_MODULES = ["preprocess.build.engines.worker_modules"]
TASKS_PER_WORKER = 2
MAX_DEFAULT_WORKERS = 8  # more workers need more memory, and the disk limits them
STOP_TIMEOUT_S = 2.0


def get_default_num_workers() -> int:
    """Return the number of cores that this process may use, at most MAX_DEFAULT_WORKERS."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(num_cores, MAX_DEFAULT_WORKERS)


def start_local_engine(workload: Workload) -> Engine:
    """Return an engine with at most one worker per partition."""
    num_workers = min(workload.max_workers, workload.num_partitions)
    # Processes cannot share a partition. A single process encodes with several threads instead.
    return ProcessEngine(num_workers) if num_workers > 1 else SerialEngine(workload.max_workers)


class SerialEngine:
    """Runs every task in this process, one after the other, in the given order."""

    num_workers = 1
    has_several_machines = False

    def __init__(self, num_threads: int = 1) -> None:
        """`num_threads`: how many threads a task may use."""
        self.num_threads = num_threads

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) for each task."""
        for task in tasks:
            yield task, task.function(*task.arguments)

    def __enter__(self) -> SerialEngine:
        limit_threads()
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ProcessEngine:
    """Runs tasks in `num_workers` processes with one thread each."""

    num_threads = 1
    has_several_machines = False

    def __init__(self, num_workers: int) -> None:
        import multiprocessing

        self.num_workers = num_workers
        context = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload(PRELOADED_MODULES)
        self._workers = [_Worker(context) for _ in range(num_workers)]

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) as soon as a task is finished."""
        from multiprocessing.connection import wait

        waiting = iter(tasks)
        for _ in range(TASKS_PER_WORKER):
            for worker, task in zip(self._workers, waiting, strict=False):
                worker.send(task)
        while busy := [worker for worker in self._workers if worker.tasks]:
            # A sentinel is ready when its process has ended.
            ready = wait([w.pipe for w in busy] + [w.process.sentinel for w in busy])
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    task, result = worker.receive()
                    worker.send(*itertools.islice(waiting, 1))
                    yield task, result

    def __enter__(self) -> ProcessEngine:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()


def start_fork_server() -> None:
    """Start the fork server without waiting for it to import the libraries."""
    if START_METHOD == "forkserver":
        import multiprocessing
        from multiprocessing import forkserver

        multiprocessing.get_context(START_METHOD).set_forkserver_preload(PRELOADED_MODULES)
        with _hidden_main_module(), _blocked_interrupts():
            forkserver.ensure_running()


class _Worker:
    """A worker process, the main process's end of its pipe, and the tasks that were sent to it."""

    def __init__(self, context: Any) -> None:
        self.pipe, worker_end = context.Pipe()
        self.process = context.Process(target=_run_worker, args=(worker_end,), daemon=True)
        with _hidden_main_module(), _blocked_interrupts():
            self.process.start()
        worker_end.close()
        self.tasks: deque[Task] = deque()  # the current task of the worker, then the waiting ones

    def send(self, *tasks: Task) -> None:
        self.tasks.extend(tasks)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `receive` reports a worker that died
            for task in tasks:
                self.pipe.send((task.function, task.arguments))

    def receive(self) -> tuple[Task, Any]:
        """Return the oldest task with its result, or raise the exception of the task.

        Raises WorkerDied if the worker has ended.
        """
        task = self.tasks.popleft()
        try:
            is_result, value = self.pipe.recv()
        except (EOFError, ConnectionResetError) as e:
            self.process.join(5)
            raise WorkerDied(
                f"the worker on {task.label} died ({_explain_exit(self.process.exitcode)}); run the same command "
                "again; it continues from the finished work"
            ) from e
        if is_result:
            return task, value
        raise import_exception(*value)

    def stop(self) -> None:
        """End the process, even in the middle of a task. An unfinished task has no receipt."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(STOP_TIMEOUT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Keep multiprocessing from importing the main script in the workers that the block starts.

    Tasks are functions of this package, so workers do not need the script.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    main.__spec__ = None
    if file is not None:
        del main.__file__
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


@contextlib.contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Block SIGINT in this process during the block, and in the processes that the block starts.

    A terminal sends Ctrl-C to all processes, and those that are still importing would print a
    traceback. The main process receives the signal after the block, and ends the others.
    """
    if os.name == "nt":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # now, because starting it unblocks the signal
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _explain_exit(status: int | None) -> str:
    if status is None or status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    causes = {
        "SIGKILL": "memory ran out", "SIGABRT": "a file is damaged", "SIGSEGV": "a file is damaged",
        "SIGBUS": "a file became shorter",
    }  # fmt: skip
    return f"{name}, which may mean that {causes[name]}" if name in causes else name


def _run_worker(pipe: Connection) -> None:
    """Run tasks until the pipe is closed. This is the main function of a worker process."""
    # A terminal sends Ctrl-C to all processes. The main process ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave_out_pandas()
    limit_threads()
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A thread always reads the pipe. Otherwise a large task and a large result could block each
    # other: both processes would be writing, and each would wait for the other to read.
    threading.Thread(target=_receive_tasks, args=(pipe, tasks), daemon=True).start()
    while True:
        function, arguments = tasks.get()
        try:
            answer = True, function(*arguments)
        except BaseException as e:  # every exception must be sent to the main process
            answer = False, describe_exception(e)
        pipe.send(answer)


def _receive_tasks(pipe: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """Move tasks from the pipe to the queue. End the process when the pipe is closed."""
    try:
        while True:
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)  # the main process has closed the pipe or is gone
    except BaseException:  # the task cannot be unpickled, so it has no result; the main process sees the worker end
        traceback.print_exc()
        os._exit(1)


def limit_threads() -> None:
    """Limit Arrow to one thread for computing and one for reading in this process."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
