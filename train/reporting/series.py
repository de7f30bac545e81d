"""The series of a run that the page draws, read from its metrics.jsonl, and thinned so that the page stays small.

A row of metrics.jsonl has no time. The time of training is the sum of the tokens of each interval divided
by its tokens per second, so it has no evaluations and no interruptions in it, and runs can be compared.

A series of many rows is thinned to `max_points` buckets of consecutive rows, whose means are drawn. Half of
the edges of the buckets are equally far apart, and half of them in the logarithm of the row's number, because
the beginning of a run fills half of a logarithmic axis.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.plotting.curves import MAX_VALUE, ROLLBACK_KEY, find_metrics
from train.run.metrics import open_rows

STEP_METRICS = ("train_loss", "learning_rate", "grad_norm", "tokens_per_s", "mfu", "peak_memory_bytes")
EVALUATION_METRICS = ("val_loss", "val_loss_stderr", "bits_per_byte")
MIN_RATE = 1e-9  # tokens per second; the time at a lower rate could be infinite


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of metrics at the same steps. NaN: there is no value."""

    steps: np.ndarray  # (P,) float64; those of a bucket are the last ones of it
    seconds: np.ndarray  # (P,) float64, of training since the beginning of the run
    values: Mapping[str, np.ndarray]  # (P,) float64 for each metric

    def thin(self, max_points: int) -> Series:
        """Return the series with at most `max_points` points."""
        num_rows = len(self.steps)
        if num_rows <= max_points:
            return self
        linear = np.linspace(0, num_rows, max_points // 2, endpoint=False)
        logarithmic = np.geomspace(1, num_rows, max_points // 2, endpoint=False) - 1
        starts = np.unique(np.concatenate([linear, logarithmic]).astype(np.int64))
        ends = np.append(starts[1:], num_rows)
        values = {key: _mean_of_buckets(of_key, starts) for key, of_key in self.values.items()}
        return Series(steps=self.steps[ends - 1], seconds=self.seconds[ends - 1], values=values)


@dataclass(frozen=True, kw_only=True)
class RunSeries:
    """The series of a run."""

    training: Series  # of STEP_METRICS
    evaluations: Series  # of EVALUATION_METRICS
    rollbacks: list[tuple[int, int]]  # (step that the run returned to, step that it came from)


def read_series(run: Path, tokens_per_step: int) -> RunSeries:
    """Return the series of the run directory `run`.

    Raises MisuseError if there is no run, and FolioError if a row of its metrics.jsonl is damaged.
    """
    training, evaluations = _Columns(STEP_METRICS), _Columns(EVALUATION_METRICS)
    rollbacks = []
    for row in open_rows(find_metrics(run)):
        if "train_loss" in row.values:
            training.add(row.step, row.values)
        if "val_loss" in row.values:
            evaluations.add(row.step, row.values)
        if (from_step := row.values.get(ROLLBACK_KEY)) is not None and 0 <= from_step <= MAX_VALUE:
            rollbacks.append((row.step, int(from_step)))
    steps, values = training.as_arrays()
    rates = values["tokens_per_s"]
    is_known = rates > MIN_RATE
    intervals_s = np.diff(steps, prepend=0) * tokens_per_step / np.where(is_known, rates, 1)
    seconds = np.cumsum(np.where(is_known, intervals_s, 0))
    eval_steps, eval_values = evaluations.as_arrays()
    eval_seconds = np.interp(eval_steps, np.append(0, steps), np.append(0, seconds))
    return RunSeries(
        training=Series(steps=steps, seconds=seconds, values=values),
        evaluations=Series(steps=eval_steps, seconds=eval_seconds, values=eval_values),
        rollbacks=rollbacks,
    )


class _Columns:
    """Collects the steps and the values of rows, 8 bytes for each."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._steps = array("d")
        self._values = {key: array("d") for key in keys}

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        self._steps.append(step)
        for key, column in self._values.items():
            value = values.get(key)
            column.append(float("nan") if value is None or abs(value) > MAX_VALUE else value)

    def as_arrays(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the steps and the values of each key, (P,) float64."""
        return np.array(self._steps), {key: np.array(column) for key, column in self._values.items()}


def _mean_of_buckets(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the mean of the values in each bucket, (B,), without NaN; NaN if there are only NaN."""
    is_value = ~np.isnan(values)
    counts = np.add.reduceat(is_value.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(is_value, values, 0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
