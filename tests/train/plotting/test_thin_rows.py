"""A curve of any number of rows needs a bounded number, and keeps its shape."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from train.plotting import thin_rows
from train.plotting.curves import MAX_ROLLBACKS, read_curves
from train.plotting.thin_rows import ThinRows, keep_extremes
from train.reporting.series import _merge_pairs, read_series


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thin_rows, "MAX_ROWS", 256)
    monkeypatch.setattr(thin_rows, "BLOCK_ROWS", 64)


@pytest.mark.parametrize("num_rows", [0, 1, 63, 64, 255])
def test_few_rows_are_kept_as_they_are(few_rows: None, num_rows: int) -> None:
    rows = ThinRows(2, keep_extremes)
    for step in range(num_rows):
        rows.add((step, step % 7))
    assert rows.as_array().tolist() == [[step, step % 7] for step in range(num_rows)]


@pytest.mark.parametrize("num_rows", [256, 1_000, 12_345])
def test_extremes_of_many_rows_are_kept_in_order(few_rows: None, num_rows: int) -> None:
    rows = ThinRows(2, keep_extremes)
    values = np.random.default_rng(num_rows).normal(size=num_rows)
    values[num_rows // 3], values[num_rows // 2] = 100, -100
    for step, value in enumerate(values):
        rows.add((step, value))
    kept = rows.as_array()
    assert 64 < len(kept) < 256 + 64 and (np.diff(kept[:, 0]) > 0).all()
    assert kept[:, 1].max() == 100 and kept[:, 1].min() == -100
    assert np.array_equal(kept[:, 1], values[kept[:, 0].astype(int)]) and kept[-1, 0] == num_rows - 1
    gaps = np.diff(kept[:, 0])
    assert gaps.max() < 4 * num_rows / 64  # the density is the same everywhere


def test_means_of_many_rows_are_kept(few_rows: None) -> None:
    rows = ThinRows(4, _merge_pairs)
    for step in range(1_024):
        rows.add((step, step / 2, step, np.nan if step % 2 else 1))
    kept = rows.as_array()
    counts = np.diff(kept[:, 0], prepend=-1)
    assert (counts * kept[:, 2]).sum() / 1_024 == 1_023 / 2 and (kept[:, 3] == 1).all()
    assert kept[-1, :2].tolist() == [1_023, 511.5]


def test_memory_for_a_long_run_is_bounded(few_rows: None, tmp_path: Path) -> None:
    row = {"train_loss": 1.5, "learning_rate": 1e-3, "tokens_per_s": 100.0, "went_back_from_step": 5}
    lines = [json.dumps({"step": step} | row) + "\n" for step in range(1, 20_001)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    read_curves(tmp_path, "run", warn=pytest.fail)  # loads what the first call needs
    tracemalloc.start()
    try:
        curves = read_curves(tmp_path, "run", warn=pytest.fail)
        series = read_series(tmp_path, tokens_per_step=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 20_000
    assert len(curves.rollbacks) == len(series.rollbacks) == MAX_ROLLBACKS
    assert series.training.steps[-1] == series.training.seconds[-1] == 20_000  # 100 tokens at 100/s for each step
