"""TensorBoard, MLflow and Weights & Biases: told what metrics.jsonl is told, and never in a run's way.

Each lives in a process of its own, `trackers.py NAME OUT_DIR`, that is told events as lines of JSON and answers each
line with one. So what it imports, patches, prints or waits for touches no run, and one that hangs can be killed. The end
of its input, without an event that says how the run ended, means that the run was killed.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import itertools
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from preprocess.errors import MisuseError, one_line
from preprocess.shards.files import parse_json, readable_json, write_durable

TRACKERS_DIR = "trackers"  # of a run: how each tracker calls it
TENSORBOARD_DIR = "tensorboard"
DEFAULT_EXPERIMENT = "folio"
MOST_CALL_S = 60.0  # that a tracker may take over one answer: MLflow's first, which makes its database, took 14 on 2 busy cores
MOST_END_S = 60.0  # that the end of a run waits for all of them
MOST_WAITING = 20_000  # events that a tracker may lag behind
MOST_AT_ONCE = 500  # events a line; MLflow takes 1,000 metrics a request, a row has at most a few
MLFLOW_METRICS = 1_000
MLFLOW_PARAM_CHARACTERS = 500  # that every server since 2.0 takes
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
SECRET = re.compile(r"(MLFLOW|WANDB|AWS|AZURE|DATABRICKS)_.*(PASSWORD|TOKEN|KEY|SECRET)", re.IGNORECASE)
USER_INFO = re.compile(r"://[^/\s'\"]*@")
ENDS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}  # of a run, and what MLflow calls it
Event = dict[str, Any]


# In the process of the run


def require_trackers(names: Sequence[str]) -> None:
    """Raise MisuseError where one is not installed."""
    for name in names:
        if not _is_installed(name):
            raise MisuseError(f"track holds {name}, which is not installed; pip install 'folio-lm[{name}]', or take it out of track")
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI") and not _is_installed("sqlalchemy"):
        raise MisuseError(
            "track holds mlflow, MLFLOW_TRACKING_URI names no server, and mlflow-skinny keeps no runs of its own; "
            "set it, or pip install 'folio-lm[mlflow]'"
        )


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder `wandb` in which runs lie is no library


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
        self._warn = warn
        self._trackers = [_Tracker(name, begin, most_waiting=MOST_WAITING + len(history or [])) for name in names]
        for row in history or []:
            self.row(row["step"], {key: value for key, value in row.items() if key != "step"})

    def row(self, step: int, values: Mapping[str, float | None]) -> None:
        """What is no finite number is left out."""
        told = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        self._send({"event": "row", "step": step, "time_s": time.time(), "values": told})

    def sample(self, step: int, text: str) -> None:
        self._send({"event": "sample", "step": step, "time_s": time.time(), "text": text})

    def went_back(self, step: int) -> None:
        """What was told of later steps is undone."""
        self._send({"event": "back", "step": step})

    def close(self, status: str) -> None:
        """`status`: one of ENDS. Waits until all is told."""
        self._send({"event": "end", "status": status})
        deadline = time.monotonic() + MOST_END_S
        for tracker in self._trackers:
            tracker.join(deadline - time.monotonic())
        self._give_up()

    def _send(self, event: Event) -> None:
        for tracker in self._trackers:
            tracker.send(event)
        self._give_up()

    def _give_up(self) -> None:
        failed = [tracker for tracker in self._trackers if tracker.failure]
        self._trackers = [tracker for tracker in self._trackers if tracker not in failed]
        for tracker in failed:
            self._warn(f"{tracker.name} is switched off for the rest of this run: {without_secrets(tracker.failure or '', os.environ)}")


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
            # -P: its neighbours here would hide libraries of their names.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    str(Path(__file__).resolve()),
                    name,
                    begin["out_dir"],
                ],  # its neighbours here would hide libraries of their names
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


def describe(error: BaseException) -> str:
    """The first line of what an error says, and no more of it than a warning should hold."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__)[:300]


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    """`text` without what stands before the host of a URL, and without the environment's passwords, tokens and keys."""
    _, _, rest = environment.get("MLFLOW_TRACKING_URI", "").partition("://")
    user_info = rest.rpartition("@")[0]
    secrets = [value for key, value in environment.items() if SECRET.fullmatch(key)]
    for secret in sorted((s for s in [user_info, *user_info.split(":", 1), *secrets] if len(s) > 3), key=len, reverse=True):
        text = text.replace(secret, "***")
    return USER_INFO.sub("://", text)


# In the process of a tracker


class Told:
    """Each value of each step once, over restarts."""

    def __init__(self, last: dict[str, int]) -> None:
        """`last`: of each name the last step that has it."""
        self.last = last

    @classmethod
    def kept_in(cls, path: Path) -> Told:
        return cls({key: step for key, step in _read(path).items() if type(step) is int})

    def keep(self, path: Path) -> None:
        """For trackers whose files cannot be asked. Not made durable: a machine that crashes may tell a few rows twice."""
        aside = path.with_suffix(".partial")
        aside.write_bytes(readable_json(self.last))
        os.replace(aside, path)

    def is_new(self, key: str, step: int) -> bool:
        """Whether `key` of `step` is to be told; from now on it is told."""
        if step <= self.last.get(key, -1):
            return False
        self.last[key] = step
        return True

    def new_values(self, row: Event) -> dict[str, float]:
        return {key: value for key, value in row["values"].items() if self.is_new(key, row["step"])}

    def cut(self, step: int) -> None:
        """What was told of later steps is undone."""
        self.last = {key: min(last, step) for key, last in self.last.items()}


def _kept(begin: Event, name: str) -> Path:
    """A file of a tracker's own in the run's folder."""
    return Path(begin["out_dir"]) / TRACKERS_DIR / name


def _read(path: Path) -> dict[str, Any]:
    """What a file of a tracker's own holds; nothing where it is not there, or was not written by it."""
    try:
        saved = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _read_run_id(begin: Event, name: str) -> str | None:
    """How the tracker called the run that is continued; None where none is."""
    run_id = None if begin["is_new"] else _read(_kept(begin, name)).get("run_id")
    return run_id if isinstance(run_id, str) and RUN_ID.fullmatch(run_id) else None


class Backend(Protocol):
    """What a tracker's library is asked to do. Each call may raise anything."""

    def rows(self, rows: list[Event]) -> None: ...
    def sample(self, event: Event) -> None: ...
    def went_back(self, step: int) -> None: ...
    def end(self, status: str) -> None: ...


class TensorBoard:
    """Event files in the run's folder. Those of a continued run begin with a mark, by which readers forget what came after it."""

    def __init__(self, begin: Event) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(begin["out_dir"]) / TENSORBOARD_DIR
        if begin["is_new"] and begin["step"] < 0:  # --restart
            for path in folder.glob("events.out.tfevents.*"):
                path.unlink()
        self._writer = EventFileWriter(str(folder))
        self._told_path = _kept(begin, "tensorboard.told.json")
        self._told = Told.kept_in(self._told_path)
        # What lies there from before the metrics.jsonl that begins now is of another run.
        self.went_back(-1 if begin["is_new"] else begin["step"])
        config = "\n".join(f"{key} = {value!r}" for key, value in begin["config"].items())
        for tag, text in (("config", config), ("build", f"{begin['build_name']}\n{begin['build_id']}")):
            self._text(tag, text, step=max(begin["step"] + 1, 0), time_s=time.time())
        self._writer.flush()

    def rows(self, rows: list[Event]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in self._told.new_values(row).items()]
            self._add(row["step"], row["time_s"], summary=Summary(value=values))
        self._writer.flush()
        self._told.keep(self._told_path)

    def sample(self, event: Event) -> None:
        self._text("sample", event["text"], step=event["step"], time_s=event["time_s"])
        self._writer.flush()

    def went_back(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._add(step + 1, time.time(), session_log=SessionLog(status=SessionLog.START))
        self._told.cut(step)

    def end(self, status: str) -> None:
        self._writer.close()

    def _text(self, tag: str, text: str, *, step: int, time_s: float) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        # TensorBoard shows Markdown: indented, a text is shown as it is.
        self._add(step, time_s, summary=text_pb(tag, "".join(f"    {line}\n" for line in text.splitlines())))

    def _add(self, step: int, time_s: float, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record

        self._writer.add_event(Record(step=step, wall_time=time_s, **content))


class MLflow:
    """A run on the server that MLFLOW_TRACKING_URI names, or where MLflow keeps runs by default."""

    def __init__(self, begin: Event) -> None:
        # Its own defaults, 120 s and 7 times, would outlast the run's patience, and the reason would not be told.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        before = _read_run_id(begin, "mlflow.json")
        self._run_id: str = before if before and self._has(before) else self._create(begin)
        write_durable(_kept(begin, "mlflow.json"), readable_json({"run_id": self._run_id}))
        # Each name's newest value; a row that was on its way when an earlier process was killed may be there or not.
        self._told = Told({metric.key: metric.step for metric in self._client.get_run(self._run_id).to_proto().data.metrics})
        self._client.update_run(self._run_id, status="RUNNING")
        self._describe(begin)

    def _has(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _create(self, begin: Event) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tags = {"build_id": begin["build_id"], "build_name": begin["build_name"], "mlflow.source.name": "train/train.py"}
        return str(self._client.create_run(experiment_id, run_name=_run_name(begin), tags=tags).info.run_id)

    def _describe(self, begin: Event) -> None:
        """The settings: as parameters, of which MLflow lets none change, and as a file, which tells the newest."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        params = {key: str(value)[:MLFLOW_PARAM_CHARACTERS] for key, value in begin["config"].items()}
        self._client.log_batch(self._run_id, params=[Param(key, value) for key, value in params.items() if key not in known])
        self._client.log_text(self._run_id, readable_json(begin["config"]).decode(), "settings.json")

    def rows(self, rows: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_mlflow_name(key), value, round(row["time_s"] * 1000), row["step"])
            for row in rows
            for key, value in row["values"].items()
            if self._told.is_new(_mlflow_name(key), row["step"])
        ]
        for start in range(0, len(metrics), MLFLOW_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + MLFLOW_METRICS])

    def sample(self, event: Event) -> None:
        self._client.log_text(self._run_id, event["text"], f"samples/step-{event['step']:08d}.txt")

    def went_back(self, step: int) -> None:
        """Nothing: what was told stays."""

    def end(self, status: str) -> None:
        self._client.set_terminated(self._run_id, ENDS[status])


def _run_name(begin: Event) -> str:
    return Path(begin["out_dir"]).resolve().name


def _mlflow_name(key: str) -> str:
    """A metric's name in the letters that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", key, flags=re.ASCII)


class WeightsAndBiases:
    """A run of W&B, kept in the run's folder until `wandb sync`, unless WANDB_MODE says otherwise."""

    def __init__(self, begin: Event) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        before = _read_run_id(begin, "wandb.json")
        run_id = before or uuid.uuid4().hex
        self._told_path = _kept(begin, "wandb.told.json")
        self._told = Told.kept_in(self._told_path) if before else Told({})
        config = {**begin["config"], "build_id": begin["build_id"], "build_name": begin["build_name"]}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or DEFAULT_EXPERIMENT,
            name=os.environ.get("WANDB_NAME") or _run_name(begin),
            id=run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or begin["out_dir"],
            mode=os.environ.get("WANDB_MODE") or "offline",
            # The process that is seen from here is not the run's: neither its output nor its code tells anything.
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True, init_timeout=MOST_CALL_S),
        )
        write_durable(_kept(begin, "wandb.json"), readable_json({"run_id": run_id}))
        self._run.config.update(config, allow_val_change=True)
        # Its own count of steps only rises; ours goes back to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def rows(self, rows: list[Event]) -> None:
        for row in rows:
            if values := self._told.new_values(row):
                self._run.log({"step": row["step"], **values})
        self._told.keep(self._told_path)

    def sample(self, event: Event) -> None:
        if self._told.is_new("sample", event["step"]):
            text = f'<pre style="white-space: pre-wrap">{html.escape(event["text"])}</pre>'
            self._run.log({"step": event["step"], "sample": self._wandb.Html(text, inject=False)})
            self._told.keep(self._told_path)

    def went_back(self, step: int) -> None:
        """Nothing: what was told stays."""

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


BACKENDS: dict[str, Callable[[Event], Backend]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WeightsAndBiases}


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
            backend.went_back(step)
        case {"event": "end", "status": status}:
            backend.end(status)
    return backend


def main(name: str, out_dir: str) -> None:
    """The process of a tracker, from the run's first word to its end."""
    for signum in ("SIGINT", "SIGTERM", "SIGHUP"):  # a scheduler sends them to every process of a job; the run tells how it ends
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
