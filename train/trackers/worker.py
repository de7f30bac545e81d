"""The process of a tracker: `tracker_process.py NAME OUT_DIR` is told events as lines of JSON, and answers each line with one.

The end of its input, without an event that says how the run ended, means that the run was killed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from filelock import FileLock

from train.trackers.client import MOST_CALL_S, MOST_END_S, TRACKERS_DIR, Event
from train.trackers.mlflow_backend import MLflow
from train.trackers.redact import describe
from train.trackers.tensorboard_backend import TensorBoard
from train.trackers.wandb_backend import WeightsAndBiases


class Backend(Protocol):
    """What a tracker's library is asked to do. Each call may raise anything."""

    def rows(self, rows: list[Event]) -> None: ...
    def sample(self, event: Event) -> None: ...
    def rolled_back(self, step: int) -> None: ...
    def end(self, status: str) -> None: ...


BACKENDS: dict[str, Callable[[Event], Backend]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def serve(name: str, told: Iterable[bytes], answer: Callable[[Mapping[str, Any]], None]) -> None:
    """Do what each line of `told` says and answer it, until they end or one fails; that is the last answer."""
    backend: Backend | None = None
    is_over = False
    try:
        for line in told:
            for events in _together(json.loads(line)):
                backend = _perform(name, backend, events)
                is_over |= events[-1]["event"] == "end"
            answer({})
        if backend and not is_over:
            backend.end("killed")
    except Exception as e:
        answer({"error": describe(e)})


def _together(events: list[Event]) -> Iterator[list[Event]]:
    """Rows that follow each other as one list, every other event alone."""
    for is_rows, group in itertools.groupby(events, key=lambda event: event["event"] == "row"):
        alike = list(group)
        yield from [alike] if is_rows else [[event] for event in alike]


def _perform(name: str, backend: Backend | None, events: list[Event]) -> Backend:
    if backend is None:
        return BACKENDS[name](events[0])
    match events[0]:
        case {"event": "row"}:
            backend.rows(events)
        case {"event": "sample"} as sample:
            backend.sample(sample)
        case {"event": "back", "step": step}:
            backend.rolled_back(step)
        case {"event": "end", "status": status}:
            backend.end(status)
    return backend


def main(name: str, out_dir: str) -> None:
    """The process of a tracker, from the run's first word to its end."""
    for signum in (
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
    ):  # a scheduler sends them to every process of a job; the run tells how it ends
        if hasattr(signal, signum):
            signal.signal(getattr(signal, signum), signal.SIG_IGN)
    told, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    silent = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # what libraries print is no answer, and what they start must hold no end of these pipes
        os.dup2(silent, fd)

    def answer(said: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the run is gone
            answers.write(json.dumps(said).encode() + b"\n")

    folder = Path(out_dir) / TRACKERS_DIR
    try:
        folder.mkdir(exist_ok=True)
        # The process of a run that was killed may still be telling what it was told.
        with FileLock(folder / f".{name}.lock", timeout=MOST_CALL_S):
            serve(name, _until_the_run_is_gone(told), answer)
    except OSError as e:
        answer({"error": describe(e)})


def _until_the_run_is_gone(told: Iterable[bytes]) -> Iterator[bytes]:
    """The lines; from their end this process has MOST_END_S left."""
    yield from told
    timer = threading.Timer(MOST_END_S, os._exit, [1])
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
