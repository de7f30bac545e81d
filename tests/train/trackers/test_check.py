"""Trackers that are not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from tests.helpers.runs import invoke, write_config
from train.trackers.check import check_trackers


def test_missing_library_is_reported_before_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("wandb", "sqlalchemy") else find_spec(name)
    )
    config = write_config(folder / "lacking.py", folder / "tiny", track=["wandb"])
    result = invoke("train.py", config)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "which is not installed; pip install 'folio-lm[wandb]'" in result.stderr
    assert not (folder / "lacking").exists()


def test_check_trackers_ignores_a_folder_with_the_name_of_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs_of_somebody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MisuseError, match="not installed"):
        check_trackers(["runs_of_somebody"])
