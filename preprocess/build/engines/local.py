"""Where tasks run: in this process, or in worker processes; a cluster would be a third way.

Each worker has a pipe of its own, the task it works on and the one that comes next, so that it never waits for this process to wake, and
that a worker that dies is missed at once, with the name of its task: nothing waits for an answer that cannot come. Results are yielded as
they come; no byte of a build depends on their order.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from preprocess.errors import FolioError

# fork would copy threads' locks in whatever state they are; Windows has spawn alone.
START_METHOD = "spawn" if os.name == "nt" else "forkserver"
PRELOADED = ["preprocess.build.engines.worker_modules"]
TASKS_PER_WORKER = 2


@dataclass(frozen=True)
class Task:
    """A call to make: a function of a module, by reference, and what it is called with."""

    label: str  # for people: "partition 7"
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: Any = None  # for whoever gave the task, to know the result by


def default_workers() -> int:
    """The cores this process may use, at most 8: more workers cost memory, and the disk bounds them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


class WorkerDied(FolioError):
    """A process that worked on a task is gone; the others' work stands."""


class InProcess:
    """Every task in this process, one after the other."""

    num_workers = 1

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Each task with its result, in the order given."""
        for task in tasks:
            yield task, task.function(*task.arguments)

    def __enter__(self) -> InProcess:
        limit_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ProcessPool:
    """Tasks in `num_workers` processes of one thread each."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        context = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        self._workers = [_Worker(context) for _ in range(num_workers)]

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Each task with its result, as they come. Raises what a task raised, and FolioError where a worker died."""
        waiting = iter(tasks)
        for _ in range(TASKS_PER_WORKER):
            for worker, task in zip(self._workers, waiting, strict=False):
                worker.give(task)
        while busy := [worker for worker in self._workers if worker.tasks]:
            ready = wait([w.pipe for w in busy] + [w.process.sentinel for w in busy])
            for worker in busy:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    done = worker.collect()
                    worker.give(*itertools.islice(waiting, 1))
                    yield done

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()


def warm_up() -> None:
    """Have the modules that workers need imported by the server they are forked from, while this process does something else."""
    if START_METHOD == "forkserver":
        from multiprocessing import forkserver

        multiprocessing.get_context(START_METHOD).set_forkserver_preload(PRELOADED)
        with _without_main():
            forkserver.ensure_running()


class _Worker:
    """One process, this end of its pipe, and the tasks it has."""

    def __init__(self, context: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _without_main():
            self.process.start()
        theirs.close()
        self.tasks: deque[Task] = deque()  # the one it works on, and those that wait in its pipe

    def give(self, *tasks: Task) -> None:
        self.tasks.extend(tasks)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `collect` tells of a worker that died
            for task in tasks:
                self.pipe.send((task.function, task.arguments))

    def collect(self) -> tuple[Task, Any]:
        task = self.tasks.popleft()
        try:
            is_good, result = self.pipe.recv()
        except (EOFError, ConnectionResetError) as e:
            self.process.join(5)
            raise WorkerDied(
                f"the worker on {task.label} died ({_cause(self.process.exitcode)}); run the same command again, it goes on where it was"
            ) from e
        if is_good:
            return task, result
        raise _error(*result)

    def stop(self) -> None:
        """End the process, whatever it does: what it was writing has no receipt."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep the main script from being imported anew in each worker: tasks are functions of this package."""
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


def _cause(status: int | None) -> str:
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"{name}, as when memory runs out" if name == "SIGKILL" else name
    return f"exit status {status}"


def _serve(pipe: Connection) -> None:
    """A worker's life: task after task, until the pipe closes, which ends it wherever it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    limit_threads(1)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Whatever is sent is taken at once: were both ends to wait for the other to take what they send, they would wait for ever.
    threading.Thread(target=_take, args=(pipe, tasks), daemon=True).start()
    while True:
        function, arguments = tasks.get()
        try:
            answer = True, function(*arguments)
        except BaseException as e:  # whatever it is, the main process has to hear of it
            answer = False, _portable(e)
        pipe.send(answer)


def _take(pipe: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)  # the main process has closed the pipe, or is gone: nobody wants what is being done here
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # what cannot be understood cannot be answered: the main process sees the worker go


def _portable(error: BaseException) -> tuple[str, str, tuple[Any, ...]]:
    """`error` as the module and name of its class and what it is made of, if it is one that the main process can make again."""
    if isinstance(error, OSError):
        return (
            "builtins",
            "OSError",
            (error.errno, error.strerror, error.filename) if error.errno is not None else (str(error),),
        )
    if type(error).__module__.startswith("preprocess.") or isinstance(error, MemoryError):
        return type(error).__module__, type(error).__qualname__, tuple(map(str, error.args))
    return "builtins", "RuntimeError", ("".join(traceback.format_exception(error)),)


def _error(module: str, name: str, arguments: tuple[Any, ...]) -> BaseException:
    error: BaseException = getattr(importlib.import_module(module), name)(*arguments)
    return error


def limit_threads(count: int) -> None:
    """Bound the threads that Arrow uses in this process."""
    import pyarrow as pa

    pa.set_cpu_count(count)
    pa.set_io_thread_count(max(count, 1))
