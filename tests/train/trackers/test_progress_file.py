"""Which steps a tracker has been sent, and the id of its run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from train.trackers.progress_file import SentSteps, read_object, read_run_id


def test_mark_accepts_each_step_once() -> None:
    sent = SentSteps({"loss": 3})
    assert [sent.mark("loss", step) for step in (2, 3, 4, 4, 2, 5)] == [False, False, True, False, False, True]
    assert sent.mark("norm", 1)


def test_mark_row_returns_unsent_values_also_after_loading(tmp_path: Path) -> None:
    sent = SentSteps.load(tmp_path / "tracker.told.json")
    sent.mark_row({"step": 5, "values": {"loss": 1.0}})
    sent.save(tmp_path / "tracker.told.json")
    sent = SentSteps.load(tmp_path / "tracker.told.json")
    assert sent.mark_row({"step": 5, "values": {"loss": 1.0, "norm": 2.0}}) == {"norm": 2.0}
    sent.roll_back(4)
    assert sent.mark_row({"step": 5, "values": {"loss": 1.5}}) == {"loss": 1.5}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"run_id": 3}', b'{"run_id": "../up"}', b"[" * 100_000])
def test_read_run_id_ignores_damaged_files_and_new_runs(tmp_path: Path, content: bytes) -> None:
    begin = {"out_dir": str(tmp_path), "is_new": False}
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "mlflow.json").write_bytes(b'{"run_id": "a1"}')
    assert read_run_id(begin, "mlflow.json") == "a1" and read_run_id(begin | {"is_new": True}, "mlflow.json") is None
    (tmp_path / "trackers" / "mlflow.json").write_bytes(content)
    assert read_run_id(begin, "mlflow.json") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_in_place_of_a_progress_file_is_an_empty_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tracker.told.json")
    assert read_object(tmp_path / "tracker.told.json") == {}
    assert SentSteps.load(tmp_path / "tracker.told.json").mark("loss", 1)
