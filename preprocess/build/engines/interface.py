"""The interface of engines, which run the tasks of a build.

A task is a function call that writes files in the work directory and returns a small result. Tasks
do not depend on each other or on the engine, and their order does not change the bytes of a build.
A task may be run again, even while a first attempt still runs on a machine that lost its network,
so it writes its files under temporary names and renames them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from preprocess.errors import FolioError


@dataclass(frozen=True)
class Task:
    """A function call. `function` is pickled, so it must be defined at the top level of a module."""

    label: str  # for error messages: "partition 7"
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: Any = None  # identifies the result for the caller; not sent to the worker


@dataclass(frozen=True)
class Workload:
    """What an engine needs to know about a build before it starts."""

    num_partitions: int
    max_workers: int  # processes on this machine
    output_dir: Path  # absolute; the tasks write beside it
    sample_input: Path | None  # one of the files that the tasks read; None if they read none
    versions: Mapping[str, str]  # that all workers must have, as `collect_versions` returns them


class Engine(Protocol):
    """Runs tasks. An engine is a context manager; leaving the context ends its workers."""

    num_workers: int
    num_threads: int  # that a task may use
    has_several_machines: bool  # if so, tasks share a file system, but no cache of it

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) as soon as a task is finished, in any order.

        Raises the exception of a task that failed, and WorkerDied if a worker process has died.
        """

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


StartEngine = Callable[[Workload], Engine]


class WorkerDied(FolioError):
    """A worker process died before it returned a result. The finished tasks are not lost."""
