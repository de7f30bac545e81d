"""The comparison of runs: a table, and differences window by window."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.runs import invoke, make_build, train_run
from tests.train.evaluation.helpers import CPU, read_rows, snapshot
from train.evaluation.comparison import format_table
from train.evaluation.results import EvaluationRow
from train.run.checkpoint import list_checkpoints

ROW = EvaluationRow(
    step=1_000_000,
    model_sha256="",
    build_id="",
    block_size=16,
    precision="fp32",
    key="",
    val_loss=3.25,
    val_loss_stderr=0.01,
    perplexity=25.79,
    bits_per_byte=None,
    data="tiny",
    num_windows=17,
    num_parameters=10**9,
    device="cpu",
)


def test_runs_are_compared_window_by_window(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (Path(shutil.copytree(folder / name, tmp_path / name)) for name in ("one", "two"))
    monkeypatch.setenv("COLUMNS", "100")
    assert invoke("evaluate.py", two, *CPU).returncode == 0
    result = invoke("evaluate.py", one, "--compare", two, *CPU)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()[1:]
    first, second = read_rows(one)[0], read_rows(two)[0]
    assert lines[0].split() == ["run", "step", "val", "loss", "perplexity", "bits", "per", "byte", "parameters"]
    for line, row, name in ((lines[1], first, "one"), (lines[2], second, "two")):
        numbers = [
            f"{row['val_loss']:.4f}",
            "±",
            f"{row['val_loss_stderr']:.4f}",
            f"{row['perplexity']:.2f}",
            f"{row['bits_per_byte']:.4f}",
        ]
        assert line.split() == [name, "24", *numbers, f"{row['num_parameters']:,}"]
    saved = [load_file(next((run / "evaluations").glob("*.safetensors")))["losses"].double() for run in (one, two)]
    difference = saved[1] - saved[0]
    stderr = (difference.std() / 17**0.5).item()
    expected = f"{difference.mean():+.4f} ± {stderr:.4f} nats per token on the same 17 windows, beyond noise"
    assert lines[3] == f"two − one: {expected}"
    assert len({len(line) for line in lines[:3]}) == 1
    before = snapshot(tmp_path)
    assert invoke("evaluate.py", "--compare", one, two).stdout.splitlines() == lines
    assert snapshot(tmp_path) == before


def test_packed_rows_are_not_compared_with_windows(folder: Path, tmp_path: Path) -> None:
    one = Path(shutil.copytree(folder / "one", tmp_path / "one"))
    (tmp_path / "tiny").symlink_to(folder / "tiny")
    two = train_run(tmp_path, "two", max_steps=2, warmup_steps=0, data_order="documents", mask_documents=True)
    for each in (one, two):
        assert invoke("evaluate.py", each, *CPU).returncode == 0
    (row,) = read_rows(two)
    assert row["is_packed"] is True and read_rows(one)[0]["is_packed"] is False
    (two / "evaluations.jsonl").write_text(json.dumps(row | {"num_windows": 17}) + "\n")  # as many as of the other run
    line = invoke("evaluate.py", "--compare", one, two).stdout
    assert "not evaluated on the same windows" in line and "packed documents; 17 of tiny" in " ".join(line.split())


@pytest.mark.parametrize("damage", ["unlink", "cut", "folder", "another"])
def test_missing_losses_are_reported_and_computed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    one, two = (Path(shutil.copytree(folder / name, tmp_path / name)) for name in ("one", "two"))
    monkeypatch.setenv("COLUMNS", "1000")
    for each in (one, two):
        assert invoke("evaluate.py", each, "--prompts", 1, *CPU).returncode == 0
    compared = invoke("evaluate.py", "--compare", one, two).stdout
    rows_before = read_rows(two)
    (file,) = (two / "evaluations").glob("*.safetensors")
    whole = file.read_bytes()
    if damage == "folder":
        shutil.rmtree(two / "evaluations")
    elif damage == "unlink":
        file.unlink()
    elif damage == "another":  # a valid file, but of another number of windows
        save_file(
            {"losses": torch.ones(3), "num_windows": torch.tensor([3]), "shares": torch.ones(1, dtype=torch.float64)},
            file,
        )
    else:
        file.write_bytes(whole[:-4])
    line = invoke("evaluate.py", "--compare", one, two).stdout.splitlines()[-1]
    newest = list_checkpoints(two)[-1]
    assert f"the window losses of {two}, step 24 on tiny, are missing or damaged" in line
    assert line.endswith(f"python train/evaluate.py {newest}") and str(one) not in line
    result = invoke("evaluate.py", two, "--prompts", 1, *CPU)
    assert (result.returncode, result.stderr) == (0, "")
    first_line, *completion = result.stdout.splitlines()
    assert "(evaluated before; the losses of its windows were missing)" in first_line
    assert completion[0].startswith("prompt 1: <author_Anna_Akimova> the quick")
    assert file.read_bytes() == whole and read_rows(two) == rows_before
    assert invoke("evaluate.py", "--compare", one, two).stdout == compared
    file.unlink()
    shutil.rmtree(newest)
    assert "its checkpoint is deleted" in invoke("evaluate.py", "--compare", one, two).stdout


def test_runs_on_different_windows_have_no_difference(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_build(tmp_path / "other", val_repeats=9)
    two = Path(shutil.copytree(folder / "two", tmp_path / "two"))
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    assert invoke("evaluate.py", two, "--data", other, *CPU).returncode == 0
    monkeypatch.setenv("COLUMNS", "200")
    lines = invoke("evaluate.py", "--compare", run, two).stdout.splitlines()
    assert lines[3].startswith("two − run: not evaluated on the same windows (25 of other")
    assert invoke("evaluate.py", two, *CPU).returncode == 0
    assert "on the same 17 windows" in invoke("evaluate.py", "--compare", run, two).stdout
    assert "on the same 25 windows" not in invoke("evaluate.py", "--compare", run, two).stdout
    assert invoke("evaluate.py", run, "--data", other, *CPU).returncode == 0
    assert "on the same 25 windows" in invoke("evaluate.py", "--data", other, "--compare", run, two).stdout


def test_runs_are_compared_on_data_that_both_were_evaluated_on(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_build(tmp_path / "other", val_repeats=9)
    two = Path(shutil.copytree(folder / "two", tmp_path / "two"))
    monkeypatch.setenv("COLUMNS", "1000")
    for each in (run, two):
        assert invoke("evaluate.py", each, *CPU).returncode == 0
    for last in (run, two):
        assert invoke("evaluate.py", last, "--data", other, *CPU).returncode == 0
        if last is run:  # evaluated on the other data, which `two` is not
            for pair in ((run, two), (two, run)):
                assert "on the same 17 windows" in invoke("evaluate.py", "--compare", *pair).stdout
    assert "on the same 25 windows" in invoke("evaluate.py", "--compare", run, two).stdout
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text(lines[1])
    (two / "evaluations.jsonl").write_text((two / "evaluations.jsonl").read_text().splitlines(keepends=True)[0])
    output = invoke("evaluate.py", "--compare", run, two).stdout
    assert output.endswith("; if they share a tokenizer, evaluate both with the same --data\n")


def test_newest_or_best_evaluation_is_compared(run: Path) -> None:
    assert invoke("evaluate.py", run, "--all", *CPU).returncode == 0
    path = run / "evaluations.jsonl"
    changed = read_rows(run)
    changed[1]["val_loss"] = 0.5
    again = changed[0] | {"step": 24, "val_loss": 0.7, "num_parameters": 77}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*changed[::-1], again]))
    assert invoke("evaluate.py", "--compare", run).stdout.splitlines()[1].endswith(" 77"), (
        "of two evaluations of a step, the last one"
    )
    assert invoke("evaluate.py", "--compare", run).stdout.splitlines()[1].split()[1] == "24"
    assert invoke("evaluate.py", "--best", "--compare", run).stdout.splitlines()[1].split()[1] == "18"


@pytest.mark.parametrize("width", [1, 10, 20, 30, 45, 60, 80, 200])
def test_table_fits_the_width(width: int) -> None:
    without_loss = dataclasses.replace(ROW, val_loss=None, val_loss_stderr=None)
    lines = format_table([("a" * 100, ROW), ("b", without_loss)], width)
    assert all(len(line) <= width for line in lines) and len({len(line) for line in lines}) == 1
    if width >= 80:
        assert (
            "parameters" in lines[0]
            and ("…" in lines[1]) == (width == 80)
            and "3.2500 ± 0.0100" in lines[1]
            and " n/a " in lines[2]
        )


def test_huge_perplexity_is_short_in_the_table() -> None:
    row = dataclasses.replace(ROW, step=1, val_loss=690.0, val_loss_stderr=None, perplexity=4.6e299, num_parameters=1)
    assert format_table([("a", row)], 80)[1].split() == ["a", "1", "690.0000", "4.6e+299", "n/a", "1"]


def test_escape_sequences_in_run_names_are_not_printed(run: Path, tmp_path: Path) -> None:
    strange = run.rename(tmp_path / "a\x1b[31m\nb")
    assert invoke("evaluate.py", strange, *CPU).returncode == 0
    output = invoke("evaluate.py", "--compare", strange).stdout
    assert "\x1b" not in output and output.count("\n") == 2
