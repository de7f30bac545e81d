"""TensorBoard, MLflow and Weights & Biases: told what metrics.jsonl is told, and never in a run's way.

Each lives in a process of its own, tracker_process.py. So what it imports, patches, prints or waits for touches no run, and
one that hangs can be killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocess.errors import MisuseError
from preprocess.shards.files import parse_json, readable_json, write_durable
from train.trackers.redact import describe

TRACKERS_DIR, TENSORBOARD_DIR = "trackers", "tensorboard"  # of a run: how each tracker calls it; TensorBoard's files
PROCESS = Path(__file__).with_name("worker.py")
MOST_CALL_S = (
    60.0  # that a tracker may take over one answer: MLflow's first, which makes its database, took 14 on 2 busy cores
)
MOST_END_S = 60.0  # that the end of a run waits for all of them
MOST_QUIET_S = 3.0  # that it waits without a word
MOST_WAITING = 20_000  # events that a tracker may lag behind
MOST_AT_ONCE = 500  # events a line; MLflow takes 1,000 metrics a request, a row has at most a few
Event = dict[str, Any]


def check_trackers(names: Sequence[str], *, named_by: str = "track") -> None:
    """Raise MisuseError where one is not installed; `named_by` is the setting that wants them."""
    for name in names:
        if not _is_installed(name):
            raise MisuseError(
                f"{named_by} wants {name}, which is not installed; pip install 'folio-lm[{name}]', or leave it out"
            )
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI") and not _is_installed("sqlalchemy"):
        raise MisuseError(
            f"{named_by} wants mlflow, MLFLOW_TRACKING_URI names no server, and mlflow-skinny keeps no runs of its own; "
            "set it, or pip install 'folio-lm[mlflow]'"
        )


def forget_trackers(out_dir: Path) -> None:
    """Make the run that begins in `out_dir` another one than before, to trackers that it names now or later."""
    for path in [*(out_dir / TRACKERS_DIR).glob("*.json"), *(out_dir / TENSORBOARD_DIR).glob("events.out.tfevents.*")]:
        path.unlink(missing_ok=True)


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder `wandb` in which runs lie is no library


def tell_the_rest(
    names: Iterable[str],
    out_dir: Path,
    *,
    about: Mapping[str, Any],
    rows: list[dict[str, Any]],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> list[str]:
    """Tell trackers what they were not told of a run that is finished; returns which now were. `about`, `warn`: as Trackers'."""
    if not rows:
        return []
    last = rows[-1]["step"]
    behind = [name for name in names if _told_to(out_dir, name) != last]
    trackers = Trackers(behind, out_dir, about=about, step=last, history=rows, warn=warn)
    trackers.close("finished", say=say)
    return [name for name in behind if _told_to(out_dir, name) == last]


def _told_to(out_dir: Path, name: str) -> int | None:
    """The last step of a run that a tracker was told to its end; None where it was not."""
    try:
        return int(parse_json((out_dir / TRACKERS_DIR / f"{name}.finished.json").read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


class Trackers:
    """All trackers of a run. Nothing here raises or waits, but for `close`, which waits at most MOST_END_S."""

    def __init__(
        self,
        names: Iterable[str],
        out_dir: Path,
        *,
        about: Mapping[str, Any],
        step: int,
        history: list[dict[str, Any]] | None,
        warn: Callable[[str], None],
    ) -> None:
        """`about`: the settings as `config`, `build_id` and `build_name`. `step`: as Report's.

        `history`: the rows of the run that is continued, up to `step`, for trackers that were not told all; None of a new run.
        """
        begin = {"event": "begin", "out_dir": str(out_dir), "step": step, "is_new": history is None, **about}
        self._warn, self._out_dir, self._last = warn, out_dir, step
        self._trackers = [_Tracker(name, begin, most_waiting=MOST_WAITING + len(history or [])) for name in names]
        for row in history or []:
            self.row(row["step"], {key: value for key, value in row.items() if key != "step"})

    def row(self, step: int, values: Mapping[str, float | None]) -> None:
        """What is no finite number is left out."""
        self._last = step
        told = {key: value for key, value in values.items() if value is not None and abs(value) <= sys.float_info.max}
        self._send({"event": "row", "step": step, "time_s": time.time(), "values": told})

    def sample(self, step: int, text: str) -> None:
        self._send({"event": "sample", "step": step, "time_s": time.time(), "text": text})

    def rolled_back(self, step: int) -> None:
        """What was told of later steps is undone."""
        self._send({"event": "back", "step": step})

    def close(self, status: str, say: Callable[[str], None] = lambda _: None) -> None:
        """`status`: finished, failed or killed. Waits until all is told; `say` is told of it where that takes a while."""
        self._send({"event": "end", "status": status})
        deadline = time.monotonic() + MOST_END_S
        if slow := [
            tracker.name for tracker in self._trackers if not tracker.ends_by(deadline - MOST_END_S + MOST_QUIET_S)
        ]:
            say(f"waiting for {', '.join(slow)}, {MOST_END_S:g} s at most")
        for tracker in self._trackers:
            tracker.join(deadline - time.monotonic())
        self._give_up()
        for tracker in self._trackers if status == "finished" else []:
            with contextlib.suppress(OSError):  # without it, the same is told once more, and left out there
                write_durable(
                    self._out_dir / TRACKERS_DIR / f"{tracker.name}.finished.json", readable_json({"step": self._last})
                )

    def _send(self, event: Event) -> None:
        for tracker in self._trackers:
            tracker.send(event)
        self._give_up()

    def _give_up(self) -> None:
        failed = [tracker for tracker in self._trackers if tracker.failure]
        self._trackers = [tracker for tracker in self._trackers if tracker not in failed]
        for tracker in failed:
            reason = f"{tracker.name} is switched off for the rest of this run: {tracker.failure}"
            self._warn(f"{reason}; once that is put right, the same command tells it what it misses")


class _Tracker:
    """One tracker's process, and the thread that tells it what waits. `failure` is why it is given up."""

    def __init__(self, name: str, begin: Event, *, most_waiting: int) -> None:
        self.name, self._most_waiting = name, most_waiting
        self.failure: str | None = None
        self._waiting: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._asked_s: float | None = None  # when the answer that is waited for was asked
        self._waiting.put(begin)
        self._thread = threading.Thread(target=self._serve, name=f"tracker {name}", daemon=True)
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(PROCESS), name, begin["out_dir"]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at the terminal is for the run, which tells how it ended
            )
            self._thread.start()
        except (OSError, RuntimeError) as e:
            self.failure = describe(e)

    def send(self, event: Event) -> None:
        asked_s = self._asked_s
        if asked_s is not None and time.monotonic() - asked_s > MOST_CALL_S:
            self._end(f"no answer for {MOST_CALL_S:g} s")
        elif self._waiting.qsize() >= self._most_waiting:
            self._end(f"{self._most_waiting:,} rows behind the run")
        elif self.failure is None:
            self._waiting.put(event)

    def ends_by(self, deadline: float) -> bool:
        """Whether the last event is answered until then, by time.monotonic."""
        if self.failure is None:
            self._thread.join(max(deadline - time.monotonic(), 0))
        return self.failure is not None or not self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait until the last event is answered, then end the process if it has not ended."""
        if self.failure is None:
            self._thread.join(max(timeout_s, 0))
            if self._thread.is_alive():
                self._end(f"it did not end within {MOST_END_S:g} s of the run")

    def _end(self, failure: str) -> None:
        self.failure = self.failure or failure
        self._process.kill()

    def _serve(self) -> None:
        try:
            while self._tell(self._take()):
                pass
            self._process.communicate(timeout=MOST_END_S)
        except Exception as e:  # whatever it is, it is not the run's
            self._end(describe(e))
            self._process.communicate()

    def _take(self) -> list[Event]:
        """All events that wait, or the next."""
        events = [self._waiting.get()]
        with contextlib.suppress(queue.Empty):
            while len(events) < MOST_AT_ONCE:
                events.append(self._waiting.get_nowait())
        return events

    def _tell(self, events: list[Event]) -> bool:
        """Returns whether more is to come. Raises whatever goes wrong."""
        assert self._process.stdin and self._process.stdout
        self._asked_s = time.monotonic()
        try:
            self._process.stdin.write(json.dumps(events).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = self._process.stdout.readline()  # it may have said why
        if not answer:
            raise RuntimeError(f"its process ended with status {self._process.wait()}")
        said = json.loads(answer)
        if "error" in said:
            raise RuntimeError(said["error"])
        self._asked_s = None
        return events[-1]["event"] != "end"
