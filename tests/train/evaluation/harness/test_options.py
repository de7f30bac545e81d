"""The options of evaluate.py for tasks, and the error if the optional library is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.runs import invoke, list_steps, train_run, write_config
from tests.train.evaluation.helpers import CPU, check_error


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return train_run(folder, "run", max_steps=6)


def test_missing_library_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("lm_eval", "train.evaluation.harness."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    result = invoke("evaluate.py", run, "--tasks", "piqa", *CPU)
    check_error(result, 1, "pip install 'folio-lm[eval]'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "a", "--prompts", "3"), "--prompts cannot be combined with --tasks"),
        (("--tasks", "a", "--data", "x"), "--data cannot be combined with --tasks"),
        (("--limit", "3"), "--limit applies to tasks; add --tasks TASK"),
        (("--tasks", "a", "--limit", "0"), "--limit must be at least 1, got 0"),
        (("--tasks", "a", "--num-fewshot", "-1"), "--num_fewshot must be at least 0, got -1"),
        (("--tasks", ",a"), "--tasks must be names of tasks, separated by commas, got ',a'"),
    ],
)
def test_wrong_options_are_one_line(run: Path, options: tuple[str, ...], message: str) -> None:
    check_error(invoke("evaluate.py", run, *options), 2, message)


def test_restart_deletes_results_of_tasks(folder: Path) -> None:
    run = train_run(folder, "again", max_steps=6)
    (run / "task_evaluations.jsonl").write_text("{}\n")
    config = write_config(folder / "again.py", folder / "tiny", max_steps=6)
    assert invoke("train.py", config, "--restart").returncode == 0
    assert not (run / "task_evaluations.jsonl").exists() and list_steps(run) == [6]
