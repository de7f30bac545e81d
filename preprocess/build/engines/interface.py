"""The interface of engines, which run the tasks of a build.

A task is a function call that writes files in the work directory and returns a small result. Tasks
do not depend on each other or on the engine, and their order does not change the bytes of a build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from preprocess.errors import FolioError


@dataclass(frozen=True)
class Task:
    """A function call. `function` is pickled, so it must be defined at the top level of a module."""

    label: str  # for error messages: "partition 7"
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: Any = None  # identifies the result for the caller; not sent to the worker


class Engine(Protocol):
    """Runs tasks. An engine is a context manager; leaving the context ends its workers."""

    num_workers: int

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield (task, result) as soon as a task is finished, in any order.

        Raises the exception of a task that failed, and WorkerDied if a worker process has died.
        """

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


class WorkerDied(FolioError):
    """A worker process died before it returned a result. The finished tasks are not lost."""
