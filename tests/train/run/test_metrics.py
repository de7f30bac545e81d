"""metrics.jsonl: rows that cannot be read, and numbers that JSON cannot represent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from train.run.metrics import METRICS_FILE, Metrics, read_rows
from train.trackers.protocol import MetricsRow


def test_read_rows_drops_a_damaged_last_line_and_rejects_others(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    assert read_rows(path) == []
    path.write_bytes(b'{"step": 1}\n\0\0\0\n')  # zeros, as a machine that lost power may leave them
    assert read_rows(path) == [MetricsRow(1, {})]
    for row in (
        b'{"step": 1, "val_loss": "3.5"}',
        b'{"step": -1}',
        b'{"step": 1, "val_loss": [1]}',
        b'{"step": ' + b"9" * 300 + b"}",
    ):
        path.write_bytes(row + b'\n{"step": 2}\n')
        with pytest.raises(FolioError, match="line 1 is not a row of metrics"):
            read_rows(path)
    path.write_bytes(b'{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(FolioError, match="line 2 is not a row of metrics"):
        read_rows(path)


def test_metrics_removes_rows_after_the_last_step(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, last_step=-1, warn=pytest.fail)
    for step in range(4):
        metrics.write(step, val_loss=1.0)
    metrics.close()
    Metrics(tmp_path, last_step=2, warn=pytest.fail).close()
    assert [row.step for row in read_rows(tmp_path / METRICS_FILE)] == [0, 1, 2]


def test_metrics_writes_null_for_a_number_that_json_cannot_represent(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, last_step=-1, warn=pytest.fail)
    metrics.write(3, perplexity=math.inf, val_loss=1.5)
    metrics.close()
    assert read_rows(tmp_path / METRICS_FILE) == [MetricsRow(3, {"perplexity": None, "val_loss": 1.5})]


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
    assert [row.step for row in read_rows(folder / METRICS_FILE)] == [1, 2, 3]
    assert len(warnings) == 1 and "was deleted or replaced while the run wrote to it" in warnings[0]
