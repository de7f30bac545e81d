"""Send the metrics of a run to TensorBoard, MLflow and Weights & Biases without disturbing the run.

Each tracker runs in a separate worker process (worker.py). Its library may patch modules, print,
start threads or wait for a server, but this does not affect the training process, and a worker that
hangs can be killed. The training loop only puts events into a queue. A thread per tracker takes
them from the queue, writes them to the worker, and waits for the answer.

A tracker is switched off for the rest of the run, with one warning, if its worker reports an error,
exits, does not answer within MAX_CALL_S, or has MAX_QUEUED_EVENTS events waiting. At the end of a
run `close` waits at most MAX_CLOSE_S.

No row is lost then, because metrics.jsonl has all of them. When a run continues, every tracker is
sent all rows so far (the history), and its worker drops those that it has sent before
(progress_file.py). `send_missing_rows` does the same for a finished run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocess.shards.files import readable_json, write_durable
from train.trackers.progress_file import read_object
from train.trackers.protocol import MAX_CALL_S, MAX_CLOSE_S, TENSORBOARD_DIR, TRACKERS_DIR, Event, MetricsRow
from train.trackers.redact import describe_error

WORKER_SCRIPT = Path(__file__).with_name("worker.py")
MAX_SILENT_WAIT_S = 3.0  # `close` waits this long before it says what it is waiting for
MAX_QUEUED_EVENTS = 20_000
MAX_EVENTS_PER_LINE = 500  # with a few metrics per row, these need about one request to MLflow

OpenHistory = Callable[[], Iterator[MetricsRow]]  # opens metrics.jsonl and returns an iterator over its rows


def reset_trackers(out_dir: Path) -> None:
    """Delete the files of the trackers in `out_dir`, so that the next run there is a new one for them."""
    for path in [*(out_dir / TRACKERS_DIR).glob("*.json"), *(out_dir / TENSORBOARD_DIR).glob("events.out.tfevents.*")]:
        path.unlink(missing_ok=True)


def send_missing_rows(
    names: Sequence[str],
    out_dir: Path,
    *,
    run_info: Mapping[str, Any],
    open_history: OpenHistory,
    log: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[str]:
    """Send the rows of a finished run to the trackers that have not received all of them.

    Returns the names of the trackers that were incomplete before and are complete now. `run_info`,
    `open_history` and `warn` are as in Trackers, `log` as in Trackers.close.
    """
    last_step = None
    for row in open_history() if names else ():
        last_step = row.step
    if last_step is None:
        return []
    incomplete = [name for name in names if _read_finished_step(out_dir, name) != last_step]
    trackers = Trackers(incomplete, out_dir, run_info=run_info, step=last_step, open_history=open_history, warn=warn)
    trackers.close("finished", log=log)
    return [name for name in incomplete if _read_finished_step(out_dir, name) == last_step]


def _finished_file(out_dir: Path, name: str) -> Path:
    """Return the path of the file that is written when the tracker has all rows of a finished run."""
    return out_dir / TRACKERS_DIR / f"{name}.finished.json"


def _read_finished_step(out_dir: Path, name: str) -> int | None:
    step = read_object(_finished_file(out_dir, name)).get("step")
    return step if type(step) is int else None


class Trackers:
    """All trackers of a run. No method raises; only `close` waits, for at most MAX_CLOSE_S."""

    def __init__(
        self,
        names: Sequence[str],
        out_dir: Path,
        *,
        run_info: Mapping[str, Any],
        step: int,
        open_history: OpenHistory | None,
        warn: Callable[[str], None],
    ) -> None:
        """Start a worker process for each name.

        `run_info` has the keys `config` (the settings), `build_id` and `build_name`. `step` is the
        number of steps done, or -1 if not even the initial model has been evaluated. `open_history`
        opens the rows up to `step` if a run is continued, and is None if the run is new. Each worker
        reads them in its own thread, so that they are never all in memory. `warn` is called with one
        line for each tracker that fails.
        """
        begin = {"event": "begin", "out_dir": str(out_dir), "step": step, "is_new": open_history is None, **run_info}
        self._warn, self._out_dir, self._last_step = warn, out_dir, step
        self._trackers = [_TrackerProcess(name, begin, open_history() if open_history else iter(())) for name in names]

    def log_row(self, step: int, values: Mapping[str, float | None]) -> None:
        """Send the metrics of a step. Values that are missing or not finite are left out."""
        self._last_step = step
        self._send(_make_row_event(step, values))

    def log_completion(self, step: int, text: str) -> None:
        """Send a prompt and its completion by the model of `step`, as one text."""
        self._send({"event": "completion", "step": step, "time_s": time.time(), "text": text})

    def roll_back(self, step: int) -> None:
        """Send that the run has returned to the checkpoint of `step`."""
        self._send({"event": "rollback", "step": step})

    def close(self, status: str, log: Callable[[str], None] = lambda _: None) -> None:
        """Wait until the workers have handled all events, and kill them after MAX_CLOSE_S.

        `status` is finished, failed or killed. If waiting takes more than MAX_SILENT_WAIT_S, `log`
        is called with one line.
        """
        self._send({"event": "end", "status": status})
        ended_at = time.monotonic()
        if slow := [tracker.name for tracker in self._trackers if not tracker.wait(ended_at + MAX_SILENT_WAIT_S)]:
            log(f"waiting up to {MAX_CLOSE_S:g} s for {', '.join(slow)}")
        for tracker in self._trackers:
            tracker.close(ended_at + MAX_CLOSE_S)
        self._drop_failed()
        for tracker in self._trackers if status == "finished" else []:
            # If this fails, the same command sends all rows again, and the worker drops them.
            with contextlib.suppress(OSError):
                write_durable(_finished_file(self._out_dir, tracker.name), readable_json({"step": self._last_step}))

    def _send(self, event: Event) -> None:
        for tracker in self._trackers:
            tracker.send(event)
        self._drop_failed()

    def _drop_failed(self) -> None:
        failed = [tracker for tracker in self._trackers if tracker.failure]
        self._trackers = [tracker for tracker in self._trackers if tracker not in failed]
        for tracker in failed:
            self._warn(
                f"{tracker.name} is switched off for the rest of this run: {tracker.failure}; "
                "after fixing that, run the same command again to send the missing rows"
            )


def _make_row_event(step: int, values: Mapping[str, float | None]) -> Event:
    finite = {key: value for key, value in values.items() if value is not None and abs(value) <= sys.float_info.max}
    return {"event": "row", "step": step, "time_s": time.time(), "values": finite}


class _TrackerProcess:
    """The worker process of one tracker, and the thread that writes the history and the queued events to it."""

    def __init__(self, name: str, begin: Event, history: Iterator[MetricsRow]) -> None:
        self.name = name
        self.failure: str | None = None  # the reason, as soon as the tracker has failed
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._call_began_at: float | None = None  # time.monotonic() at the beginning of a call; None between calls
        self._earlier = itertools.chain([begin], (_make_row_event(row.step, row.values) for row in history))
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(WORKER_SCRIPT), name, begin["out_dir"]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must reach only the run, which then sends the event "end"
            )
            self._thread.start()
        except (OSError, RuntimeError) as e:
            self.failure = describe_error(e)

    def send(self, event: Event) -> None:
        """Queue an event. If the worker hangs or too many events are waiting, kill it instead."""
        call_began_at = self._call_began_at  # read once, the thread changes it
        if call_began_at is not None and time.monotonic() - call_began_at > MAX_CALL_S:
            self._kill(f"no answer for {MAX_CALL_S:g} s")
        elif self._queue.qsize() >= MAX_QUEUED_EVENTS:
            self._kill(f"{MAX_QUEUED_EVENTS:,} rows are waiting to be sent")
        elif self.failure is None:
            self._queue.put(event)

    def wait(self, deadline: float) -> bool:
        """Wait for the last answer until `deadline`. Return whether it or a failure has arrived."""
        if self.failure is None:
            self._thread.join(max(deadline - time.monotonic(), 0))
        return self.failure is not None or not self._thread.is_alive()

    def close(self, deadline: float) -> None:
        """Wait for the last answer until `deadline`, a time.monotonic(), and then kill the worker."""
        if not self.wait(deadline):
            self._kill(f"it did not finish within {MAX_CLOSE_S:g} s after the run ended")

    def _kill(self, failure: str) -> None:
        self.failure = self.failure or failure
        self._process.kill()

    def _run(self) -> None:
        try:
            while events := list(itertools.islice(self._earlier, MAX_EVENTS_PER_LINE)):
                self._call(events)
            while self._call(self._next_events()):
                pass
            self._process.communicate(timeout=MAX_CLOSE_S)
        except Exception as e:  # no error of a tracker may end the run
            self._kill(describe_error(e))
            self._process.communicate()

    def _next_events(self) -> list[Event]:
        """Wait for an event. Return it and those queued after it, at most MAX_EVENTS_PER_LINE."""
        events = [self._queue.get()]
        with contextlib.suppress(queue.Empty):
            while len(events) < MAX_EVENTS_PER_LINE:
                events.append(self._queue.get_nowait())
        return events

    def _call(self, events: list[Event]) -> bool:
        """Send one line of events and wait for the answer. Return whether more events will follow.

        Raises RuntimeError if the worker reports an error or has ended.
        """
        assert self._process.stdin and self._process.stdout
        self._call_began_at = time.monotonic()
        try:
            self._process.stdin.write(json.dumps(events).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = self._process.stdout.readline()  # the reason, if the worker wrote one
        if not line:
            raise RuntimeError(f"its process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        self._call_began_at = None
        return events[-1]["event"] != "end"
