"""Logging of a run: to metrics.jsonl, to the console, and to the trackers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from preprocess.shards.files import JsonObject
from train.config import Config
from train.core.cli import warn
from train.run.console import Console, format_duration, format_perplexity, format_rate, format_speed
from train.run.metrics import METRICS_FILE, Metrics, read_rows
from train.run.validation import Evaluation
from train.trackers.client import Trackers


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What logs and trackers record about a run: its settings and its data."""

    config: Config
    build_id: str
    build_name: str

    def as_dict(self) -> JsonObject:
        """Return a JSON object."""
        return {"config": self.config.as_dict(), "build_id": self.build_id, "build_name": self.build_name}


class StepTimer:
    """The time of training steps.

    `seconds_left` counts the time that passes inside `pause`; `lap` does not.
    """

    def __init__(self, step: int) -> None:
        self._began = self._lap_began = time.monotonic()
        self._first_step = self._lap_step = step
        self._paused_s, self._num_pauses = 0.0, 0
        self._split = self._began, 0.0, step  # time, seconds of pauses and step of the last split

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the block from the speed."""
        paused_at = time.monotonic()
        yield
        seconds = time.monotonic() - paused_at
        self._lap_began += seconds
        self._paused_s += seconds
        self._num_pauses += 1

    def split(self, step: int) -> float:
        """Return the mean seconds per step since the last split, without pauses."""
        now, paused_s, last_step = time.monotonic(), self._paused_s, self._split[2]
        seconds = now - self._split[0] - (paused_s - self._split[1])
        self._split = now, paused_s, step
        return seconds / max(step - last_step, 1)

    @property
    def mean_pause_s(self) -> float:
        return self._paused_s / max(self._num_pauses, 1)

    def lap(self, step: int) -> float:
        """Return the mean seconds per step since the last call, without pauses."""
        now = time.monotonic()
        seconds_per_step = (now - self._lap_began) / max(step - self._lap_step, 1)
        self._lap_began, self._lap_step = now, step
        return max(seconds_per_step, 1e-9)

    def seconds_left(self, step: int, max_steps: int) -> float:
        """Return the expected seconds that the remaining steps take, including pauses.

        The estimate is the mean of this process's steps so far.
        """
        return (time.monotonic() - self._began) / max(step - self._first_step, 1) * (max_steps - step)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The work of one optimizer step of all processes, and the peak rate of their devices."""

    tokens_per_step: int
    flops_per_token: float
    peak_flops: float | None  # FLOP/s of all devices together; None if not known
    memory_bytes: Callable[[], int | None]  # the peak memory so far, as peak_memory_bytes measures it

    def speed(self, tokens_per_s: float) -> dict[str, float | None]:
        """Return tokens/s, model FLOPs utilization (MFU, Chowdhery et al. 2022) and peak memory."""
        mfu = None if self.peak_flops is None else tokens_per_s * self.flops_per_token / self.peak_flops
        return {"tokens_per_s": tokens_per_s, "mfu": mfu, "peak_memory_bytes": self.memory_bytes()}


class RunLogger:
    """Writes the metrics, prints the console and feeds the trackers of a run. A context manager."""

    def __init__(self, info: RunInfo, cost: StepCost, *, step: int, is_main: bool = True, quiet: bool = False) -> None:
        """Start logging after `step` steps; -1 if the untrained model is not evaluated yet.

        Rows of later steps, which an interrupted run has written, are removed. Only the main
        process writes and prints; with `quiet` it only writes.
        """
        out_dir = Path(info.config.out_dir) if is_main else None
        self._console = Console(sys.stdout if is_main and not quiet else open(os.devnull, "w"))  # noqa: SIM115 (closed at exit)
        is_new = out_dir is None or not (out_dir / METRICS_FILE).exists()
        self._metrics = Metrics(out_dir, last_step=step, warn=self._warn) if out_dir else None
        self._out_dir, self.max_steps, self._cost = out_dir, info.config.max_steps, cost
        self._timer = StepTimer(max(step, 0))
        self._began, self._evaluation_s = time.monotonic(), 0.0
        self._is_stopped = False
        self._trackers = self._start_trackers(info, step=step, is_new=is_new)

    def _start_trackers(self, info: RunInfo, *, step: int, is_new: bool) -> Trackers:
        names = info.config.track if self._out_dir else ()
        out_dir = self._out_dir or Path()
        history = None if is_new or not names else read_rows(out_dir / METRICS_FILE)
        return Trackers(names, out_dir, run_info=info.as_dict(), step=step, history=history, warn=self._warn)

    def _warn(self, text: str) -> None:
        self._console.close()
        warn(text)

    def print(self, text: str) -> None:
        """Print lines that stay on the console."""
        self._console.line(text)

    @property
    def timer(self) -> StepTimer:
        return self._timer

    def pause(self) -> AbstractContextManager[None]:
        """Return a context whose time does not count for the speed of training."""
        return self._timer.pause()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time of the block as evaluation."""
        began = time.monotonic()
        with self.pause():
            yield
        self._evaluation_s += time.monotonic() - began

    @property
    def evaluation_share(self) -> float:
        """The fraction of this process's time that evaluations took."""
        return self._evaluation_s / max(time.monotonic() - self._began, 1e-9)

    def log_step(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, skipped_updates: int) -> None:
        """Log an optimizer step. The speed is the mean since the last call."""
        speed = self._cost.speed(self._cost.tokens_per_step / self._timer.lap(step))
        values = {"train_loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm}
        self._write_row(step, **values, skipped_updates=skipped_updates, **speed)
        parts = [
            f"step {step:,}/{self.max_steps:,}",
            f"loss {loss:.4f}",
            f"lr {format_rate(learning_rate)}",
            f"grad norm {grad_norm:.2f}",
            *format_speed(speed),
            f"{format_duration(self._timer.seconds_left(step, self.max_steps))} left",
        ]
        self._console.live("  ".join(parts))

    def log_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Log an evaluation."""
        by_build = {f"val_loss/{name}": loss for name, loss in evaluation.by_build.items()}
        self._write_row(
            step,
            val_loss=evaluation.loss,
            val_loss_stderr=evaluation.stderr,
            perplexity=evaluation.perplexity,
            bits_per_byte=evaluation.bits_per_byte,
            evaluation_share=self.evaluation_share,
            **by_build,
        )
        stderr = "" if evaluation.stderr is None else f" ± {evaluation.stderr:.4f}"
        bits = "n/a" if evaluation.bits_per_byte is None else f"{evaluation.bits_per_byte:.4f}"
        parts = [
            f"step {step:,}/{self.max_steps:,}",
            f"val loss {evaluation.loss:.4f}{stderr}",
            f"perplexity {format_perplexity(evaluation.perplexity)}",
            f"bits per byte {bits}",
            *(f"{name} {loss:.4f}" for name, loss in evaluation.by_build.items()),
        ]
        self._console.line("  ".join(parts))

    def log_completion(self, step: int, text: str) -> None:
        """Log a completion: print it, and send it to the trackers."""
        self._console.line(f"\n{text}\n")
        self._trackers.log_completion(step, text)

    def log_rollback(self, step: int, *, from_step: int, skipped_samples: int) -> None:
        """Remove the rows after `step`, to which the run has returned, and log a row for the rollback."""
        if self._metrics and self._out_dir:
            self._metrics.sync()
            self._metrics.close()
            self._metrics = Metrics(self._out_dir, last_step=step, warn=self._warn)
        self._trackers.roll_back(step)
        self._write_row(step, went_back_from_step=from_step, skipped_samples=skipped_samples)
        self._timer = StepTimer(step)

    def mark_stopped(self) -> None:
        """Record that a signal ends the run before its last step."""
        self._is_stopped = True

    def sync(self) -> None:
        """Flush the rows to the disk. Call this before saving a checkpoint, which needs its rows."""
        if self._metrics:
            self._metrics.sync()

    def _write_row(self, step: int, **values: float | None) -> None:
        if self._metrics:
            self._metrics.write(step, **values)
        self._trackers.log_row(step, values)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._console.close()
        if self._metrics:
            self._metrics.close()
        is_killed = self._is_stopped or (kind is not None and issubclass(kind, KeyboardInterrupt))
        status = "killed" if is_killed else "finished" if kind is None else "failed"
        self._trackers.close(status, log=self._console.line)
