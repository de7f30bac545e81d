"""The worker process of a tracker, `worker.py NAME OUT_DIR`; see protocol.py for its input and output.

The worker must outlive the run, because a run that ends by `kill -9` cannot mark itself as killed
in the tracker. So it ignores the signals that a scheduler or a terminal sends to all processes of a
job. If its input ends without an event "end", the run was killed, and the worker has MAX_CLOSE_S to
finish.

If the run is restarted before that, there is a second worker. A lock file makes it wait for the
first one.
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

from train.trackers.mlflow_backend import MLflow
from train.trackers.protocol import MAX_CALL_S, MAX_CLOSE_S, TRACKERS_DIR, Event
from train.trackers.redact import describe_error
from train.trackers.tensorboard_backend import TensorBoard
from train.trackers.wandb_backend import WeightsAndBiases

IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Backend(Protocol):
    """The methods that a tracker implements.

    The constructor takes the event "begin". Every method may raise any exception. A run that
    continues sends its earlier rows again: the backend must drop those it has (see SentSteps).
    """

    def log_rows(self, rows: list[Event]) -> None: ...
    def log_completion(self, event: Event) -> None: ...
    def roll_back(self, step: int) -> None: ...
    def end(self, status: str) -> None: ...


BACKENDS: dict[str, Callable[[Event], Backend]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def serve(name: str, lines: Iterable[bytes], answer: Callable[[Mapping[str, Any]], None]) -> None:
    """Handle and answer each line of events for the tracker `name`, until the lines end or one fails."""
    backend: Backend | None = None
    has_ended = False
    try:
        for line in lines:
            for events in _group_rows(json.loads(line)):
                backend = _handle(name, backend, events)
                has_ended |= events[-1]["event"] == "end"
            answer({})
        if backend and not has_ended:
            backend.end("killed")
    except Exception as e:
        answer({"error": describe_error(e)})


def _group_rows(events: list[Event]) -> Iterator[list[Event]]:
    """Yield consecutive rows as one list, to save requests, and every other event alone."""
    for is_row, group in itertools.groupby(events, key=lambda event: event["event"] == "row"):
        if is_row:
            yield list(group)
        else:
            yield from ([event] for event in group)


def _handle(name: str, backend: Backend | None, events: list[Event]) -> Backend:
    """Handle rows or one other event, and return the backend, which the event "begin" creates."""
    if backend is None:
        return BACKENDS[name](events[0])
    match events[0]:
        case {"event": "row"}:
            backend.log_rows(events)
        case {"event": "completion"} as completion:
            backend.log_completion(completion)
        case {"event": "rollback", "step": step}:
            backend.roll_back(step)
        case {"event": "end", "status": status}:
            backend.end(status)
    return backend


def main(name: str, out_dir: str) -> None:
    """Serve the tracker `name` until the run in `out_dir` ends."""
    for signal_name in IGNORED_SIGNALS:
        if hasattr(signal, signal_name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, signal_name), signal.SIG_IGN)
    # Move the two pipes to other file descriptors: libraries may print, and processes that they
    # start would inherit 0, 1 and 2 and keep the pipes open after this process has ended.
    lines, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    devnull = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(devnull, fd)

    def answer(content: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the run has ended
            answers.write(json.dumps(content).encode() + b"\n")

    folder = Path(out_dir) / TRACKERS_DIR
    try:
        folder.mkdir(exist_ok=True)
        with FileLock(folder / f".{name}.lock", timeout=MAX_CALL_S):
            serve(name, _exit_after_last_line(lines), answer)
    except OSError as e:
        answer({"error": describe_error(e)})


def _exit_after_last_line(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines. After the last one, start a timer that ends this process if it hangs."""
    yield from lines
    timer = threading.Timer(MAX_CLOSE_S, os._exit, [1])
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
