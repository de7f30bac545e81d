"""Training on builds and streams without validation documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.runs import invoke, make_build, make_config, read_metric_rows, train_run, write_config
from train.core.device import choose_device
from train.data.batches import ValidationData
from train.data.builds import open_builds


def make_without_validation(folder: Path) -> Path:
    empty = {"tokens": 0, "documents": 0, "text_bytes": 0, "shards": []}
    build = make_build(folder)
    for path in build.glob("val-*"):
        path.unlink()
    manifest = json.loads((build / "manifest.json").read_text())
    splits = manifest["splits"] | {"val": empty}
    for path in (*build.glob("tokenizer/*"), *build.iterdir()):
        path.unlink() if path.is_file() else path.rmdir()
    build.rmdir()
    make_build(folder, splits=splits)
    for path in build.glob("val-*"):
        path.unlink()
    return build


def test_run_without_validation_documents_trains_and_saves_but_does_not_evaluate(tmp_path: Path) -> None:
    make_without_validation(tmp_path / "tiny")
    config = write_config(tmp_path / "run.py", tmp_path / "tiny", max_steps=12)
    done = invoke("train.py", config)
    assert done.returncode == 0, done.stderr
    assert "training tokens, no validation documents, so no evaluations" in done.stdout
    assert "0 evaluations" in done.stdout and "val loss" not in done.stdout
    rows = read_metric_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 13)) and not any("val_loss" in row for row in rows)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()]
    assert invoke("train.py", config).returncode == 0  # it is finished


def test_resumed_run_without_validation_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    make_without_validation(tmp_path / "tiny")
    whole = train_run(tmp_path, "whole", max_steps=12, checkpoint_interval=6, keep_checkpoints=5)
    newest = max((whole / "checkpoints").iterdir())
    for path in sorted(newest.iterdir()):
        path.unlink()
    newest.rmdir()
    losses = [row["train_loss"] for row in read_metric_rows(whole)]
    assert invoke("train.py", tmp_path / "whole.py").returncode == 0
    assert [row["train_loss"] for row in read_metric_rows(whole)] == losses


def test_evaluate_says_that_the_split_is_empty(tmp_path: Path) -> None:
    make_without_validation(tmp_path / "tiny")
    run = train_run(tmp_path, "run", max_steps=6)
    done = invoke("evaluate.py", run)
    assert (
        done.returncode == 1 and "the validation split of tiny is empty, so there is nothing to evaluate" in done.stderr
    )
    done = invoke("evaluate.py", run, "--best")
    assert done.returncode != 0 and "has no best checkpoint" in done.stderr


def test_patience_needs_validation_documents(tmp_path: Path) -> None:
    make_without_validation(tmp_path / "tiny")
    done = invoke("train.py", write_config(tmp_path / "run.py", tmp_path / "tiny", patience=2))
    assert done.returncode == 2 and "patience is 2, but tiny has no validation documents" in done.stderr


def test_mixture_is_evaluated_on_the_builds_that_have_validation_documents(tmp_path: Path) -> None:
    without, other = make_without_validation(tmp_path / "without"), make_build(tmp_path / "other")
    builds = open_builds(f"{without}:3,{other}:1")
    data = ValidationData(builds, make_config(), device=choose_device("cpu"))
    alone = ValidationData(open_builds(str(other)), make_config(), device=choose_device("cpu"))
    assert (data.names, data.shares, data.num_windows) == (["other"], (1.0,), alone.num_windows)


@pytest.mark.parametrize("val_fraction", [0.0, 0.5])
def test_stream_without_validation_documents_is_trained_on(tmp_path: Path, val_fraction: float) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"line {i} of the text" for i in range(400)))
    (tmp_path / "mine.toml").write_text(
        f'inputs = ["a.txt"]\ndocument = "line"\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\n'
        f"val_fraction = {val_fraction}\n"
    )
    settings = {"data": f"stream:{tmp_path / 'mine.toml'}", "data_order": "random", "max_steps": 6, "stream_buffer": 8}
    config = write_config(tmp_path / "run.py", tmp_path, **settings)
    done = invoke("train.py", config)
    assert done.returncode == 0, done.stderr
    assert any("val_loss" in row for row in read_metric_rows(tmp_path / "run")) == (val_fraction > 0)
