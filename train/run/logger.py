"""Logging of a run: to metrics.jsonl and completions.jsonl, to the console, and to the trackers."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from preprocess.console import Activity, Console, is_live
from preprocess.shards.files import JsonObject
from train.config import Config
from train.core.cli import warn
from train.run.completions import CompletionRow, append_completion, drop_completions
from train.run.console import format_perplexity, format_rate, format_speed, format_step
from train.run.metrics import METRICS_FILE, Metrics, open_rows
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
        self._first_step = self._lap_step = self._last_step = step
        self._last_step_at = self._began
        self._lap_rate: float | None = None
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
        """Return the mean seconds per step since the last split, without pauses.

        The first split is the end of this process's first step, in which kernels are chosen and memory
        is allocated.
        """
        now, paused_s, last_step = time.monotonic(), self._paused_s, self._split[2]
        seconds = now - self._split[0] - (paused_s - self._split[1])
        self._split = now, paused_s, step
        return seconds / max(step - last_step, 1)

    def num_timed_steps(self, step: int) -> int:
        """Return the number of steps between the last split and `step`."""
        return step - self._split[2]

    @property
    def mean_pause_s(self) -> float:
        return self._paused_s / max(self._num_pauses, 1)

    def lap(self, step: int) -> float:
        """Return the mean seconds per step since the last call, without pauses."""
        now = time.monotonic()
        seconds_per_step = (now - self._lap_began) / max(step - self._lap_step, 1)
        self._lap_began, self._lap_step = now, step
        seconds_per_step = max(seconds_per_step, 1e-9)
        self._lap_rate = 1 / seconds_per_step
        return seconds_per_step

    def rate(self) -> float | None:
        """Return the steps per second since the last lap, or in it; None if no step is done."""
        seconds, num_steps = self._last_step_at - self._lap_began, self._last_step - self._lap_step
        return num_steps / seconds if num_steps > 0 and seconds > 0 else self._lap_rate

    def count(self, step: int) -> None:
        """Record that the host has finished `step`."""
        now = time.monotonic()
        if self._last_step == self._first_step:
            self._split = now, self._paused_s, step
        self._last_step, self._last_step_at = step, now

    def seconds_left(self, step: int, max_steps: int) -> float:
        """Return the expected seconds that the remaining steps take, including pauses.

        Each step is expected to take the mean time of this process's steps so far.
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

    def __init__(
        self, info: RunInfo, cost: StepCost, *, step: int, is_main: bool = True, console: Console | None = None
    ) -> None:
        """Start logging after `step` steps; -1 if the untrained model is not evaluated yet.

        Rows of later steps, which an interrupted run has written, are removed. Only the main
        process writes. Lines are printed, and the progress is shown, on `console`, if it is given.
        """
        out_dir = Path(info.config.out_dir) if is_main else None
        self._console = console or Console(quiet=True)
        is_new = out_dir is None or not (out_dir / METRICS_FILE).exists()
        self._metrics = Metrics(out_dir, last_step=step, warn=warn) if out_dir else None
        if out_dir:
            drop_completions(out_dir, last_step=step)
        self._out_dir, self._max_steps, self._cost = out_dir, info.config.max_steps, cost
        self._timer, self._first_step = StepTimer(max(step, 0)), max(step, 0)
        self._logged_at = time.monotonic()
        # What the live line shows of the last step whose loss is known, and of the last logged step.
        self._live_loss: float | None = None
        self._live_details: list[str] = []
        self._bar = Activity("step", total=self._max_steps)
        self._exit_stack = ExitStack()
        self._began, self._evaluation_s = time.monotonic(), 0.0
        self._is_stopped = False
        self._trackers = self._start_trackers(info, step=step, is_new=is_new)

    def _start_trackers(self, info: RunInfo, *, step: int, is_new: bool) -> Trackers:
        names = info.config.track if self._out_dir else ()
        out_dir = self._out_dir or Path()
        open_history = None if is_new else functools.partial(open_rows, out_dir / METRICS_FILE)
        return Trackers(names, out_dir, run_info=info.as_dict(), step=step, open_history=open_history, warn=warn)

    def print(self, text: str) -> None:
        """Print lines that stay on the console."""
        self._console.line(text)

    @property
    def timer(self) -> StepTimer:
        return self._timer

    def set_max_steps(self, max_steps: int) -> None:
        """Show another number of steps from now on."""
        self._max_steps = self._bar.total = max_steps

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

    def count_step(self, step: int, loss: Tensor, *, is_logged: bool) -> None:
        """Show that `step` is done, without waiting for the device unless it is the first step here.

        `loss`, (), is that of the step. `is_logged`: whether `log_step` follows.
        """
        self._timer.count(step)
        self._bar.done = step
        if self._live_loss is None and not self._console.quiet:
            self._live_loss = loss.item()
            if not is_live(sys.stdout) and not is_logged:
                self._console.line(
                    format_step(step, self._max_steps, [f"loss {self._live_loss:.4f}"], seconds_left=None)
                )

    def _describe_live(self) -> list[str]:
        steps_per_s = self._timer.rate()
        speed = [] if steps_per_s is None else [f"{steps_per_s * self._cost.tokens_per_step:,.0f} tokens/s"]
        loss = [] if self._live_loss is None else [f"loss {self._live_loss:.4f}"]
        return [*loss, *speed, *self._live_details]

    @property
    def seconds_since_log(self) -> float:
        """The time since the last logged step."""
        return time.monotonic() - self._logged_at

    def log_step(self, step: int, *, loss: float, learning_rate: float, grad_norm: float, skipped_updates: int) -> None:
        """Log an optimizer step. The speed is the mean since the last call."""
        speed = self._cost.speed(self._cost.tokens_per_step / self._timer.lap(step))
        self._live_loss, self._live_details = loss, format_speed(speed)[1:]
        self._logged_at = time.monotonic()
        values = {"train_loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm}
        self._write_row(step, **values, skipped_updates=skipped_updates, **speed)
        rates = [f"lr {format_rate(learning_rate)}", f"grad norm {grad_norm:.2f}"]
        self._live_details += rates
        if not is_live(sys.stdout):
            parts = [f"loss {loss:.4f}", *rates, *format_speed(speed)]
            seconds_left = self._timer.seconds_left(step, self._max_steps)
            self._console.line(format_step(step, self._max_steps, parts, seconds_left=seconds_left))

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
            f"step {step:,}/{self._max_steps:,}",
            f"val loss {evaluation.loss:.4f}{stderr}",
            f"perplexity {format_perplexity(evaluation.perplexity)}",
            f"bits per byte {bits}",
            *(f"{name} {loss:.4f}" for name, loss in evaluation.by_build.items()),
        ]
        self._console.line("  ".join(parts), colour="bold")

    def log_completion(self, step: int, text: str) -> None:
        """Log a completion: print it, write it to completions.jsonl, and send it to the trackers."""
        self._console.line(f"\n{text}\n")
        if self._out_dir:
            append_completion(self._out_dir, CompletionRow(step=step, text=text))
        self._trackers.log_completion(step, text)

    def log_rollback(self, step: int, *, from_step: int, skipped_samples: int) -> None:
        """Remove the rows after `step`, to which the run has returned, and log a row for the rollback."""
        if self._metrics and self._out_dir:
            self._metrics.sync()
            self._metrics.close()
            self._metrics = Metrics(self._out_dir, last_step=step, warn=warn)
            drop_completions(self._out_dir, last_step=step)
        self._trackers.roll_back(step)
        self._write_row(step, went_back_from_step=from_step, skipped_samples=skipped_samples)
        self._timer, self._bar.done = StepTimer(step), step

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
        self._bar = Activity("step", total=self._max_steps, done=self._first_step, details=self._describe_live)
        self._exit_stack.enter_context(self._console.show(self._bar))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._exit_stack.close()
        if self._metrics:
            self._metrics.close()
        is_killed = self._is_stopped or (kind is not None and issubclass(kind, KeyboardInterrupt))
        status = "killed" if is_killed else "finished" if kind is None else "failed"
        self._trackers.close(status, log=self._console.line)
