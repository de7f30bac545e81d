"""The series of a run: the time of training, and thinning."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.reporting.series import Series, read_series


def test_time_is_that_of_training_only(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "val_loss": 4.0, "bits_per_byte": None},
        {"step": 10, "train_loss": 3.0, "tokens_per_s": 50.0},
        {"step": 20, "train_loss": 2.0, "tokens_per_s": None},  # a speed that was not finite
        {"step": 20, "val_loss": 2.5},
        {"step": 40, "train_loss": 10**400, "tokens_per_s": 200.0},
        {"step": 40, "went_back_from_step": 60},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_series(tmp_path, tokens_per_step=100)
    assert found.training.steps.tolist() == [10, 20, 40]
    assert found.training.seconds.tolist() == [20, 20, 30]  # 1,000 tokens at 50/s, unknown, 2,000 at 200/s
    assert found.training.values["train_loss"].tolist()[:2] == [3, 2]
    assert np.isnan(found.training.values["train_loss"][2]) and np.isnan(found.training.values["grad_norm"]).all()
    assert found.evaluations.steps.tolist() == [0, 20] and found.evaluations.seconds.tolist() == [0, 20]
    assert found.rollbacks == [(40, 60)]


def test_time_is_finite(tmp_path: Path) -> None:
    """The page has the time as a duration, and as JSON, which knows no infinity."""
    row = {"step": 10, "train_loss": 3.0, "tokens_per_s": 1e-320}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert read_series(tmp_path, tokens_per_step=100).training.seconds.tolist() == [0]


@given(st.integers(1, 3_000), st.integers(4, 400))
def test_thinned_series_keeps_means_and_the_last_point(num_rows: int, max_points: int) -> None:
    steps = np.arange(1, num_rows + 1, dtype=float)
    values = np.where(steps % 7 == 0, np.nan, steps)
    thin = Series(steps=steps, seconds=steps / 2, values={"a": values, "none": values * np.nan}).thin(max_points)
    assert len(thin.steps) <= max(max_points, 1) and thin.steps[-1] == num_rows == 2 * thin.seconds[-1]
    assert (np.diff(thin.steps) > 0).all() and np.isnan(thin.values["none"]).all()
    starts = np.append(0, thin.steps[:-1]).astype(int)
    for start, stop, mean in zip(starts, thin.steps.astype(int), thin.values["a"], strict=True):
        of_bucket = values[start:stop][~np.isnan(values[start:stop])]
        assert np.isnan(mean) if not len(of_bucket) else np.isclose(mean, of_bucket.mean())


def test_thinned_series_keeps_the_beginning() -> None:
    steps = np.arange(1, 100_001, dtype=float)
    thin = Series(steps=steps, seconds=steps, values={}).thin(1_000)
    assert thin.steps[:20].tolist() == list(range(1, 21))  # for a logarithmic axis
