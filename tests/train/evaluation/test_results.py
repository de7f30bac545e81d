"""Rows and losses of evaluations on the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from preprocess.errors import FolioError
from tests.helpers.runs import invoke
from tests.train.evaluation.helpers import CPU, check_error, read_rows
from train.evaluation import results
from train.evaluation.results import Completion, append_rows, read_evaluations, read_losses


def test_append_evaluation_removes_an_incomplete_last_line(run: Path) -> None:
    assert invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU).returncode == 0
    path = run / "evaluations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert "evaluated before" in invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU).stdout
    assert path.read_bytes() == whole + whole[:40]
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    assert path.read_bytes().startswith(whole) and [row["step"] for row in read_rows(run)] == [12, 24]


@pytest.mark.parametrize("line", ["[]", "{}", "x", '{"step": "1"}', None])
def test_damaged_row_is_reported_with_its_line_number(run: Path, line: str | None) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    path = run / "evaluations.jsonl"
    if line is None:
        line = path.read_text().replace('"val_loss": 1', '"val_loss": "1"', 1).strip().replace('"1".', '"1" ')
    path.write_text(f"{line}\n" + path.read_text())
    result = invoke("evaluate.py", run, *CPU)
    check_error(result, 1, "line 1 is not an evaluation (")
    assert "Error" not in result.stderr


@pytest.mark.parametrize("damage", ["truncated", "pipe"])
def test_damaged_losses_are_computed_again(run: Path, damage: str) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    (file,) = (run / "evaluations").glob("*.safetensors")
    whole = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(whole[:-4])
    else:
        file.unlink()
        os.mkfifo(file)
    assert invoke("evaluate.py", run, "--prompts", 1, *CPU).returncode == 0
    assert file.read_bytes() == whole and read_rows(run)[0]["val_loss"] == read_rows(run)[1]["val_loss"]


def test_changed_losses_are_noticed_by_their_hash_and_computed_again(run: Path) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    (file,) = (run / "evaluations").glob("*.safetensors")
    whole = file.read_bytes()
    changed = load_file(file)
    changed["losses"][0] += 1
    save_file(changed, file)
    assert read_losses(file) is None
    assert "the losses of its windows were missing" in invoke("evaluate.py", run, *CPU).stdout
    assert file.read_bytes() == whole
    del changed["sha256"]
    save_file(changed, file)
    assert read_losses(file) is not None, "as an earlier version wrote it"


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"losses": torch.ones(3)},
        {"losses": torch.ones(3), "num_windows": torch.tensor([2]), "shares": torch.ones(1)},
        {"losses": torch.ones(3), "num_windows": torch.tensor([4, -1]), "shares": torch.ones(2)},
        {"losses": torch.ones(0), "num_windows": torch.ones(0, dtype=torch.int64), "shares": torch.ones(0)},
        {"losses": torch.ones(3), "num_windows": torch.tensor([3.0]), "shares": torch.ones(1)},
        {"losses": torch.ones(3, dtype=torch.float64), "num_windows": torch.tensor([3]), "shares": torch.ones(1)},
    ],
)
def test_read_losses_rejects_inconsistent_tensors(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_losses(tmp_path / "x.safetensors") is None


def test_rows_of_earlier_versions_are_read(run: Path) -> None:
    """Earlier versions stored completions as `answers`, with the key `answer`."""
    first = invoke("evaluate.py", run, "--prompts", 2, *CPU)
    assert first.returncode == 0
    (row,) = read_rows(run)
    completions = tuple(Completion(**entry) for entry in row["completions"])
    assert len(completions) == 2 and read_evaluations(run)[0].completions == completions
    row["answers"] = [{"prompt": entry["prompt"], "answer": entry["completion"]} for entry in row.pop("completions")]
    (run / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    assert read_evaluations(run)[0].completions == completions
    again = invoke("evaluate.py", run, "--questions", 2, *CPU)
    assert again.stdout.splitlines()[0] == first.stdout.splitlines()[0] + "  (evaluated before)"
    assert read_rows(run) == [row]
    row["answers"] = [{"prompt": "without an answer"}]
    (run / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    check_error(invoke("evaluate.py", run, *CPU), 1, "line 1 is not an evaluation (it has no answer)")


def test_row_that_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluations.jsonl"
    append_rows(path, [{"step": 1}])
    monkeypatch.setattr(results, "MAX_ROW_BYTES", 100)
    with pytest.raises(FolioError, match="the evaluation has 114 bytes, expected at most 100; pass fewer --prompts"):
        append_rows(path, [{"step": 2}, {"text": "a" * 101}])
    assert path.read_text() == '{"step": 1}\n'
