"""metrics.jsonl: rows that cannot be read, and numbers that JSON cannot represent."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from train.plotting.curves import read_curves
from train.run.metrics import METRICS_FILE, Metrics, open_rows
from train.trackers.protocol import MetricsRow


def test_open_rows_drops_a_damaged_last_line_and_rejects_others(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    assert list(open_rows(path)) == []
    path.write_bytes(b'{"step": 1}\n\0\0\0\n')  # zeros, as a machine that lost power may leave them
    assert list(open_rows(path)) == [MetricsRow(1, {})]
    for row in (
        b'{"step": 1, "val_loss": "3.5"}',
        b'{"step": -1}',
        b'{"step": true}',
        b'{"val_loss": 1}',
        b'{"step": 1, "val_loss": [1]}',
        b'{"step": ' + b"9" * 300 + b"}",
    ):
        path.write_bytes(row + b'\n{"step": 2}\n')
        with pytest.raises(FolioError, match="line 1 is not a row of metrics"):
            list(open_rows(path))
    path.write_bytes(b'{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(FolioError, match="line 2 is not a row of metrics"):
        list(open_rows(path))


def test_metrics_removes_rows_after_the_last_step(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, last_step=-1, warn=pytest.fail)
    for step in range(4):
        metrics.write(step, val_loss=1.0)
    metrics.close()
    Metrics(tmp_path, last_step=2, warn=pytest.fail).close()
    assert [row.step for row in open_rows(tmp_path / METRICS_FILE)] == [0, 1, 2]


def test_metrics_writes_null_for_a_number_that_json_cannot_represent(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, last_step=-1, warn=pytest.fail)
    metrics.write(3, perplexity=math.inf, val_loss=1.5)
    metrics.close()
    assert list(open_rows(tmp_path / METRICS_FILE)) == [MetricsRow(3, {"perplexity": None, "val_loss": 1.5})]


@pytest.mark.parametrize("reader", ["resume", "plot"])
def test_a_long_metrics_file_is_not_read_into_memory(tmp_path: Path, reader: str) -> None:
    num_rows, row = 5000, {"train_loss": 1.5, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_s": 123456.7}
    path = tmp_path / METRICS_FILE
    path.write_text("".join(json.dumps({"step": step} | row) + "\n" for step in range(num_rows)))
    num_bytes = path.stat().st_size
    read_curves(tmp_path, "run", warn=pytest.fail)  # loads what the first call needs
    tracemalloc.start()
    try:
        if reader == "resume":
            Metrics(tmp_path, last_step=num_rows // 2, warn=pytest.fail).close()
        else:
            assert len(read_curves(tmp_path, "run", warn=pytest.fail).points["train_loss"][0]) == num_rows
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < num_bytes, f"{peak / num_bytes:.1f} bytes for a byte of the file"


@pytest.mark.parametrize("deleted", ["file", "folder", "replaced"])
def test_deleted_metrics_are_written_again_with_a_warning(tmp_path: Path, deleted: str) -> None:
    warnings: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = Metrics(folder, last_step=-1, warn=warnings.append)
    metrics.write(1, val_loss=1.0)
    metrics.sync()
    assert warnings == []
    (folder / METRICS_FILE).unlink()
    if deleted == "folder":
        folder.rmdir()
    if deleted == "replaced":
        (folder / METRICS_FILE).write_text("mine")
    metrics.write(2, val_loss=2.0)
    metrics.sync()
    metrics.write(3, val_loss=3.0)
    metrics.sync()
    metrics.close()
    assert [row.step for row in open_rows(folder / METRICS_FILE)] == [1, 2, 3]
    assert len(warnings) == 1 and "was deleted or replaced while the run wrote to it" in warnings[0]
