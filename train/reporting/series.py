"""The series of a run that the page draws, read from its metrics.jsonl, and thinned so that the page stays small.

A row of metrics.jsonl has no time. The time of training is the sum of the tokens of each interval divided
by its tokens per second, so it has no evaluations and no interruptions in it, and runs can be compared.

Of very many rows, consecutive ones are merged already while they are read; see ThinRows.
A series of many rows is thinned to `max_points` buckets of consecutive rows, whose means are drawn. Half of
the edges of the buckets are equally far apart, and half of them in the logarithm of the row's number, because
the beginning of a run fills half of a logarithmic axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.plotting.curves import MAX_ROLLBACKS, MAX_VALUE, ROLLBACK_KEY, find_metrics
from train.plotting.thin_rows import ThinRows
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
    training = ThinRows(2 + len(STEP_METRICS), _merge_pairs)
    evaluations = ThinRows(2 + len(EVALUATION_METRICS), _merge_pairs)
    rollbacks: deque[tuple[int, int]] = deque(maxlen=MAX_ROLLBACKS)
    last_step, seconds = 0, 0.0
    for row in open_rows(find_metrics(run)):
        if "train_loss" in row.values:
            values = [_get_value(row.values, key) for key in STEP_METRICS]
            rate = values[STEP_METRICS.index("tokens_per_s")]
            if rate > MIN_RATE:
                seconds += (row.step - last_step) * tokens_per_step / rate
            last_step = row.step
            training.add((row.step, seconds, *values))
        if "val_loss" in row.values:  # the time of training at its step is not known yet
            evaluations.add((row.step, math.nan, *(_get_value(row.values, key) for key in EVALUATION_METRICS)))
        if (from_step := row.values.get(ROLLBACK_KEY)) is not None and 0 <= from_step <= MAX_VALUE:
            rollbacks.append((row.step, int(from_step)))
    of_training = _make_series(training, STEP_METRICS)
    of_evaluations = _make_series(evaluations, EVALUATION_METRICS)
    eval_seconds = np.interp(of_evaluations.steps, np.append(0, of_training.steps), np.append(0, of_training.seconds))
    return RunSeries(
        training=of_training,
        evaluations=dataclasses.replace(of_evaluations, seconds=eval_seconds),
        rollbacks=list(rollbacks),
    )


def _get_value(values: Mapping[str, float | None], key: str) -> float:
    value = values.get(key)
    return math.nan if value is None or abs(value) > MAX_VALUE else float(value)


def _make_series(rows: ThinRows, keys: tuple[str, ...]) -> Series:
    steps, seconds, *values = rows.as_array().T
    return Series(steps=steps, seconds=seconds, values=dict(zip(keys, values, strict=True)))


def _merge_pairs(rows: np.ndarray) -> np.ndarray:
    """Return of each two of R rows (step, seconds, values) the last step and seconds, and means: (R / 2, C)."""
    merged = rows[1::2].copy()
    columns = np.ascontiguousarray(rows[:, 2:].T)
    starts = np.arange(0, len(rows), 2)
    merged[:, 2:] = np.stack([_mean_of_buckets(column, starts) for column in columns], axis=1)
    return merged


def _mean_of_buckets(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the mean of the values in each bucket, (B,), without NaN; NaN if there are only NaN."""
    is_value = ~np.isnan(values)
    counts = np.add.reduceat(is_value.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(is_value, values, 0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
