"""What a run tells while it goes: rows in metrics.jsonl, and lines on the console."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from preprocess.errors import FolioError, printable
from preprocess.shards.files import parse_json, write_durable
from train.core.cli import warn
from train.trackers.client import Trackers

if TYPE_CHECKING:  # plot.py reads rows and must not wait for torch
    from train.run.validation import Evaluation

METRICS_FILE = "metrics.jsonl"
LARGEST_STEP = 10**15
LARGEST_IN_FULL = 1e7  # a perplexity that is spelled digit by digit
CLEAR_LINE = "\r\x1b[K"


class Metrics:
    """Appends rows to metrics.jsonl. Each has `step`, and is written at once, so that a crash loses none before it."""

    def __init__(self, out_dir: Path, last_step: int) -> None:
        """Begins by cutting the file back to the rows up to `last_step`, in one piece."""
        path = out_dir / METRICS_FILE
        kept = [row for row in read_rows(path) if row["step"] <= last_step]
        write_durable(path, b"".join(map(_row_bytes, kept)))
        # Unbuffered: on a full disk a buffer would fail a second time when it is closed.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)

    def write(self, step: int, **values: float | None) -> None:
        """Add a row. A number that JSON cannot hold, infinite or not a number, becomes null."""
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
        row = memoryview(_row_bytes({"step": step, **finite}))
        while row:  # a raw write may be short: on a disk that fills up, the rest is what raises
            row = row[self._file.write(row) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _row_bytes(row: dict[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; none where there is no file. A torn last line is left out.

    Raises FolioError for a line before the last that is no row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise TypeError("it is no object")
            if type(row.get("step")) is not int or not 0 <= row["step"] <= LARGEST_STEP:
                raise TypeError("step is no whole number")
            if bad := [key for key, value in row.items() if type(value) not in (int, float, type(None))]:
                raise TypeError(f"{bad[0]} is no number")
        except (ValueError, TypeError, RecursionError) as e:
            if number == len(lines) - 1:  # a crash of the machine can leave a last line of zeros
                break
            raise FolioError(
                f"{path}, line {number} is no row of metrics ({e}); take the line out, or begin again with --restart"
            ) from e
        rows.append(row)
    return rows


class Clock:
    """Time spent on training steps. What is done inside `pause` counts for the time left, not for the speed."""

    def __init__(self, step: int) -> None:
        self._began = self._lap_began = time.monotonic()
        self._first_step = self._lap_step = step

    @contextmanager
    def pause(self) -> Iterator[None]:
        paused_at = time.monotonic()
        yield
        self._lap_began += time.monotonic() - paused_at

    def lap(self, step: int) -> float:
        """Seconds a step took since the last lap, on the mean."""
        now = time.monotonic()
        seconds_per_step = (now - self._lap_began) / max(step - self._lap_step, 1)
        self._lap_began, self._lap_step = now, step
        return max(seconds_per_step, 1e-9)

    def seconds_left(self, step: int, max_steps: int) -> float:
        """What the remaining steps will take if they go as those of this process did, pauses included."""
        return (time.monotonic() - self._began) / max(step - self._first_step, 1) * (max_steps - step)


class Console:
    """Lines that stay, and on a terminal one live line below them that is rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_terminal, self._is_live = stream, stream.isatty(), False

    def line(self, text: str) -> None:
        """One or more lines that stay."""
        self._write((CLEAR_LINE if self._is_live else "") + printable(text) + "\n", is_live=False)

    def live(self, text: str) -> None:
        """The newest progress: in place on a terminal, elsewhere a line of its own."""
        if not self._is_terminal:
            return self.line(text)
        # Cut to the width: a line that wraps cannot be rewritten.
        width = shutil.get_terminal_size().columns - 1
        self._write(CLEAR_LINE + printable(text)[:width], is_live=True)

    def close(self) -> None:
        """End the live line, so that what others print does not land on it."""
        if self._is_live:
            self._write("\n", is_live=False)

    def _write(self, text: str, *, is_live: bool) -> None:
        self._is_live = is_live
        # A run outlives whoever reads along: `| tee` dies of the very Ctrl-C that asks for a checkpoint.
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(text)
            self._stream.flush()


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step of all processes together does, and what their devices could do at most."""

    tokens_per_step: int
    flops_per_token: float
    peak_flops: float | None  # of all devices together; None where it is not known
    memory_bytes: Callable[[], int | None]  # the most a GPU has held so far

    def speed(self, tokens_per_s: float) -> dict[str, float | None]:
        """Tokens a second, the share of the devices' peak (model FLOPs utilisation, Chowdhery et al. 2022), and memory."""
        mfu = None if self.peak_flops is None else tokens_per_s * self.flops_per_token / self.peak_flops
        return {"tokens_per_s": tokens_per_s, "mfu": mfu, "peak_memory_bytes": self.memory_bytes()}


class Report:
    """A run's metrics, trackers, console and clock: each event becomes a row and a line. A context manager."""

    def __init__(
        self,
        out_dir: Path | None,
        *,
        step: int,
        max_steps: int,
        work: Work,
        track: Sequence[str],
        about: Mapping[str, Any],
    ) -> None:
        """`out_dir`: none in all processes but the main one, which then say nothing.

        `step`: how many steps are done; -1 where not even the model was evaluated. Rows of later ones are cut off.
        `track`, `about`: the trackers, and what they are told of the run (Trackers).
        """
        self._console = Console(sys.stdout if out_dir else open(os.devnull, "w"))  # noqa: SIM115 (closed with the process)
        is_new = out_dir is None or not (out_dir / METRICS_FILE).exists()
        self._metrics = Metrics(out_dir, last_step=step) if out_dir else None
        self._out_dir, self._max_steps, self._work = out_dir, max_steps, work
        self._clock = Clock(max(step, 0))
        self._began, self._evaluation_s = time.monotonic(), 0.0
        self._is_stopped = False
        self._trackers = self._start_trackers(track, about, step=step, is_new=is_new)

    def _start_trackers(self, track: Sequence[str], about: Mapping[str, Any], *, step: int, is_new: bool) -> Trackers:
        if not track or self._out_dir is None:
            return Trackers((), Path(), about=about, step=step, history=None, warn=self._warn)
        history = None if is_new else read_rows(self._out_dir / METRICS_FILE)  # which Metrics has cut off
        return Trackers(track, self._out_dir, about=about, step=step, history=history, warn=self._warn)

    def _warn(self, text: str) -> None:
        self._console.close()
        warn(text)

    def say(self, text: str) -> None:
        self._console.line(text)

    def pause(self) -> AbstractContextManager[None]:
        return self._clock.pause()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """What is done inside counts as evaluation."""
        began = time.monotonic()
        with self.pause():
            yield
        self._evaluation_s += time.monotonic() - began

    @property
    def evaluation_share(self) -> float:
        """Of this process' time since the run began or was continued."""
        return self._evaluation_s / max(time.monotonic() - self._began, 1e-9)

    def training(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, skipped_updates: int) -> None:
        """A row and a live line for an optimizer step; the speed is that of the steps since the last."""
        tokens_per_s = self._work.tokens_per_step / self._clock.lap(step)
        speed = self._work.speed(tokens_per_s)
        row = {
            "train_loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "skipped_updates": skipped_updates,
        }
        self._row(step, **row, **speed)
        extra = "".join(f"  {text}" for text in format_speed(speed))
        self._console.live(
            f"step {step:,}/{self._max_steps:,}  loss {loss:.4f}  lr {format_rate(learning_rate)}  grad norm {grad_norm:.2f}{extra}  "
            f"{format_duration(self._clock.seconds_left(step, self._max_steps))} left"
        )

    def evaluation(self, step: int, result: Evaluation) -> None:
        """A row and a line for an evaluation."""
        values = {
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "evaluation_share": self.evaluation_share,
        }
        by_build = {f"val_loss/{name}": loss for name, loss in result.by_build.items()}
        self._row(step, val_loss=result.loss, val_loss_stderr=result.stderr, **values, **by_build)
        bits = "n/a" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
        error = "" if result.stderr is None else f" ± {result.stderr:.4f}"
        each = "".join(f"  {name} {loss:.4f}" for name, loss in result.by_build.items())
        self._console.line(
            f"step {step:,}/{self._max_steps:,}  val loss {result.loss:.4f}{error}  "
            f"perplexity {format_perplexity(result.perplexity)}  bits per byte {bits}{each}"
        )

    def sample(self, step: int, text: str) -> None:
        """A text that the model drew."""
        self._console.line(f"\n{text}\n")
        self._trackers.sample(step, text)

    def stopped(self) -> None:
        """A signal ends the run before its last step."""
        self._is_stopped = True

    def rolled_back(self, step: int, *, from_step: int, skipped_samples: int) -> None:
        """The run stands at `step` again: later rows are cut off, and one says what happened."""
        if self._metrics and self._out_dir:
            self._metrics.close()
            self._metrics = Metrics(self._out_dir, last_step=step)
        self._trackers.rolled_back(step)
        self._row(step, went_back_from_step=from_step, skipped_samples=skipped_samples)
        self._clock = Clock(step)

    def sync(self) -> None:
        """Make the rows durable: call before committing a checkpoint that follows them."""
        if self._metrics:
            self._metrics.sync()

    def _row(self, step: int, **values: float | None) -> None:
        if self._metrics:
            self._metrics.write(step, **values)
        self._trackers.row(step, values)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._console.close()
        if self._metrics:
            self._metrics.close()
        is_killed = self._is_stopped or (kind is not None and issubclass(kind, KeyboardInterrupt))
        self._trackers.close(
            "killed" if is_killed else "finished" if kind is None else "failed", say=self._console.line
        )


def format_speed(speed: dict[str, float | None]) -> list[str]:
    """What a Work's speed says, as a console shows it."""
    tokens_per_s, mfu, memory_bytes = (speed[key] for key in ("tokens_per_s", "mfu", "peak_memory_bytes"))
    spelled = [f"{tokens_per_s:,.0f} tokens/s"]
    spelled += [] if mfu is None else [f"MFU {mfu:.1%}"]
    return spelled if memory_bytes is None else [*spelled, f"{memory_bytes / 1e9:.1f} GB"]


def format_perplexity(value: float | None) -> str:
    """25.79; 1.1e+26 of a loss that is beyond all vocabularies."""
    return "n/a" if value is None else f"{value:,.2f}" if value < LARGEST_IN_FULL else f"{value:.1e}"


def format_rate(value: float) -> str:
    """A learning rate: 1.0e-3."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_duration(seconds: float) -> str:
    """45s, 1m 20s, 2h 05m."""
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours:,}h {minutes % 60:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"
