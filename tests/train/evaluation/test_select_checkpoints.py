"""Which checkpoints of a run are evaluated, if some are damaged or deleted meanwhile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import edit_checkpoint, invoke, step_of
from tests.train.evaluation.helpers import CPU, check_error, read_rows
from train.evaluation import job
from train.run import checkpoint
from train.run.checkpoint import list_checkpoints


def test_damaged_checkpoint_is_skipped_with_a_warning(run: Path) -> None:
    weights = run / "checkpoints" / "step-00000018" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1) and "step-00000018" in result.stderr
    assert result.stderr.startswith("warning: ") and "skipped" in result.stderr
    assert [row["step"] for row in read_rows(run)] == [12, 24]


def test_many_damaged_checkpoints_get_few_warnings(run: Path) -> None:
    for step in range(100, 120):
        (run / "checkpoints" / f"step-{step:08d}").mkdir()
    result = invoke("evaluate.py", run, "--all", *CPU)
    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines)) == (0, 6) and lines[-1] == "warning: 15 more checkpoints skipped"


def test_deleted_checkpoint_is_evaluated_if_it_was_open_and_otherwise_skipped(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training keeps only the last checkpoints and deletes the others meanwhile."""
    original = job.check_shapes

    def delete_checkpoints(found: Any, config: Any) -> None:
        if found.info.step == 12:
            shutil.rmtree(found.folder)
            shutil.rmtree(run / "checkpoints" / "step-00000018")
        original(found, config)

    monkeypatch.setattr(job, "check_shapes", delete_checkpoints)
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1), result.stderr
    assert result.stderr.startswith("warning: ") and result.stderr.endswith("; skipped\n")
    assert [row["step"] for row in read_rows(run)] == [12, 24]


@pytest.mark.parametrize("which", [(), ("--best",), ("--all",)])
@pytest.mark.parametrize("function", ["_check_file", "_map_tensors"])
def test_checkpoints_are_listed_again_when_training_deletes_them(
    run: Path, monkeypatch: pytest.MonkeyPatch, which: tuple[str, ...], function: str
) -> None:
    """Between listing and opening, all checkpoints are replaced by a newer one."""
    later = list_checkpoints(run)[-1].rename(run / "later")
    assert json.loads((later / "checkpoint.json").read_text())["watch"]["best_step"] == 24
    for each in list_checkpoints(run):
        edit_checkpoint(each, watch={"best_step": step_of(each), "best_loss": 1.0, "num_since": 0})

    def train_on() -> None:
        if later.exists():
            for each in list_checkpoints(run):
                shutil.rmtree(each)
            later.rename(run / "checkpoints" / "step-00000024")

    original = getattr(checkpoint, function)
    monkeypatch.setattr(checkpoint, function, lambda *a: (train_on(), original(*a))[1])
    result = invoke("evaluate.py", run, *which, *CPU)
    assert (result.returncode, [row["step"] for row in read_rows(run)]) == (0, [24]), result.stderr
    assert all(line.startswith("warning: ") and "skipped" in line for line in result.stderr.splitlines())


def test_command_fails_if_all_checkpoints_are_damaged(run: Path) -> None:
    for each in list_checkpoints(run):
        (each / "model.safetensors").write_bytes(b"")
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("error: no checkpoint of ")
    assert not (run / "evaluations.jsonl").exists()


def test_checkpoint_outside_a_run_is_rejected(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(list_checkpoints(run)[-1], tmp_path / "elsewhere" / "checkpoint")
    check_error(invoke("evaluate.py", alone, *CPU), 2, "is not inside a run")
