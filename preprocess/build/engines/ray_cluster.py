"""The engine that runs tasks on an existing Ray cluster (`preprocess build --engine ray`).

The nodes share a file system with the inputs and the output. A task is a Ray task with one CPU. If a
node dies, Ray runs its tasks again on other nodes; a task that is repeated writes the same bytes.
Receipts, progress and counts are those of one machine, because the main process gets the same
results. If the main process dies, the same command continues the build, on a cluster or not.

The main process must run on a node of the cluster, since it reads and writes files as the tasks do.
Ray pickles tasks and results between its own processes, so everyone who can reach a cluster can run
code on it: it belongs in a network that only its users reach.

Only this module imports ray.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from preprocess.build.engines.exceptions import import_exception
from preprocess.build.engines.interface import StartEngine, Task, WorkerDied, Workload
from preprocess.build.engines.machines import publish_requirements, run_task
from preprocess.errors import FolioError, MisuseError, one_line, shorten

TASKS_PER_CPU = 2  # so that no node waits for the main process
MAX_RETRIES = 5  # of a task whose worker or node died
WAIT_S = 5.0  # between two looks at the nodes
NO_CPU_TIMEOUT_S = 300.0  # a cluster that is scaled to the work may need minutes to start a node
MAX_REASON_CHARACTERS = 300
CONNECT_TIMEOUT_S = 10.0
AUTO = "auto"  # for ray: the cluster that this machine is a node of
CLIENT_SCHEME = "ray://"


@contextlib.contextmanager
def connect(address: str | None, max_tasks: int | None) -> Iterator[StartEngine]:
    """Connect to a Ray cluster during the block, and yield the function that starts an engine on it.

    `address`: HOST:PORT of its head; by default that in RAY_ADDRESS, or the cluster that this
    machine is a node of. `max_tasks`: that run at once, by default as many as the cluster has CPUs.
    What the block prints to stdout goes to stderr.
    Raises MisuseError if ray is not installed, and FolioError if there is no such cluster.
    """
    try:
        import ray
    except ImportError as e:
        raise MisuseError("--engine ray needs the package ray; install it with `pip install 'folio-lm[ray]'`") from e
    address = address or os.environ.get("RAY_ADDRESS") or AUTO
    if address != AUTO:
        _check_address(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, namespace="folio")
    except Exception as e:  # ray documents ConnectionError; others are raised for a wrong address or version
        raise FolioError(
            f"cannot connect to a Ray cluster ({_explain(e)}); start one with `ray start --head`, or pass --address "
            "HOST:PORT"
        ) from e
    finally:
        signal.signal(signal.SIGTERM, handler)  # ray sets its own
    try:
        # Ray prints messages about nodes that died to stdout, which belongs to the result of the command.
        with contextlib.redirect_stdout(sys.stderr):
            yield functools.partial(RayEngine, max_tasks=max_tasks)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise FolioError if nothing listens at `address`: ray itself would try for minutes."""
    if address.startswith(CLIENT_SCHEME):
        raise MisuseError(
            f"{CLIENT_SCHEME} addresses are those of Ray Client, whose process is not on a node; run this command on a "
            "node of the cluster, for example with `ray job submit`, without --address or with "
            "--address HOST:PORT"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 1 << 16:
        raise MisuseError(f"the address of a Ray cluster is HOST:PORT, got {shorten(address)}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as e:
        raise FolioError(
            f"no Ray cluster listens at {shorten(address)} ({_explain(e)}); start one with `ray start --head`, or pass "
            "--address HOST:PORT of its head"
        ) from e


class RayEngine:
    """Runs tasks on the Ray cluster that this process is connected to."""

    num_threads = 1
    has_several_machines = True

    def __init__(self, workload: Workload, *, max_tasks: int | None) -> None:
        """Raises FolioError if no node has a CPU before NO_CPU_TIMEOUT_S."""
        import ray

        self._ray = ray
        self._max_tasks = max_tasks
        self._publishing = publish_requirements(workload)
        self._running: dict[Any, Task] = {}
        self.num_workers = self._count_cpus()

    def __enter__(self) -> RayEngine:
        self._required = self._ray.put(self._publishing.__enter__())
        remote = self._ray.remote(num_cpus=1, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")
        self._run_task = remote(run_task)
        return self

    def __exit__(self, *_: object) -> None:
        """End the tasks that still run, so that none of them writes to a work directory that is being deleted."""
        for future in self._running:
            self._ray.cancel(future, force=True)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=WAIT_S)
        self._running.clear()
        self._publishing.__exit__(None, None, None)

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) as soon as a task is finished."""
        waiting = iter(tasks)
        looked_at = float("-inf")
        while True:
            if time.monotonic() - looked_at > WAIT_S:  # nodes may join and leave
                self.num_workers, looked_at = self._count_cpus(), time.monotonic()
            num_free = self.num_workers * TASKS_PER_CPU - len(self._running)
            for task in itertools.islice(waiting, max(num_free, 0)):
                self._running[self._run_task.remote(self._required, task.function, task.arguments)] = task
            if not self._running:
                return
            finished, _ = self._ray.wait(list(self._running), num_returns=1, timeout=WAIT_S)
            for future in finished:
                task = self._running.pop(future)
                yield task, self._get_result(task, future)

    def _get_result(self, task: Task, future: Any) -> Any:
        try:
            is_result, value = self._ray.get(future)
        except self._ray.exceptions.RayTaskError as e:  # a task returns its exceptions, so it did not begin
            raise FolioError(
                f"a node of the Ray cluster cannot run tasks ({_explain(e)}); install Folio on all nodes"
            ) from e
        except self._ray.exceptions.RayError as e:
            raise WorkerDied(
                f"the worker on {task.label} died {MAX_RETRIES + 1} times ({_explain(e)}); run the same command again; "
                "it continues from the finished work"
            ) from e
        if is_result:
            return value
        raise import_exception(*value)

    def _count_cpus(self) -> int:
        """Return how many tasks can run at once. Waits until at least one can.

        Raises FolioError if none can for a long time.
        """
        deadline = time.monotonic() + NO_CPU_TIMEOUT_S
        while not (num_cpus := int(self._ray.cluster_resources().get("CPU", 0))):
            if time.monotonic() > deadline:
                raise WorkerDied(
                    f"no node of the Ray cluster has had a CPU for {NO_CPU_TIMEOUT_S:.0f} s; start nodes with `ray "
                    "start --address HOST:PORT`, and run the same command again"
                )
            time.sleep(1)
        return min(num_cpus, self._max_tasks or num_cpus)


def _explain(error: BaseException) -> str:
    """Return the first sentence of the last line of a message of ray, which may have a traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(lines[-1].partition(". ")[0][:MAX_REASON_CHARACTERS])
