"""The interface of engines, which run the tasks of a build.

A task is a function call that writes files in the work directory and returns a small result. Tasks
are independent of each other and of the engine, and the bytes of a build do not depend on the order
of their results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from preprocess.errors import FolioError


@dataclass(frozen=True)
class Task:
    """A function call. The function is pickled by reference, so it must be defined in a module."""

    label: str  # for error messages: "partition 7"
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: Any = None  # identifies the result for the caller; not sent to the worker


class Engine(Protocol):
    """Runs tasks. An engine is a context manager: leaving it ends its workers."""

    num_workers: int

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Yield each task with its result as soon as it is finished, in any order.

        Raises the exception of a task that failed, and WorkerDied if a worker process is gone.
        """

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...


class WorkerDied(FolioError):
    """A worker process died while it worked on a task. The finished tasks are not lost."""
