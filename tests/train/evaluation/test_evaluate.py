"""The command that evaluates checkpoints: real runs, each checkpoint evaluated once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.helpers.runs import (
    AUTHOR_ID,
    EOT_ID,
    edit_checkpoint,
    invoke,
    make_build,
    read_metric_rows,
    small_disk,
    write_config,
)
from tests.train.evaluation.helpers import CPU, check_error, read_rows, snapshot
from train.evaluation import job
from train.evaluation.results import read_losses
from train.run.checkpoint import list_checkpoints, open_checkpoint

STOPPED = "stopped; the evaluations so far are saved, run the same command again to continue\n"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_has_the_metrics_of_training(folder: Path, tmp_path: Path, precision: str) -> None:
    config = write_config(tmp_path / "run.py", folder / "tiny", precision=precision, keep_checkpoints=10)
    assert invoke("train.py", config).returncode == 0
    result = invoke("evaluate.py", tmp_path / "run", "--all", *CPU)
    assert (result.returncode, result.stderr) == (0, "")
    logged = {row["step"]: row for row in read_metric_rows(tmp_path / "run") if "val_loss" in row}
    found = read_rows(tmp_path / "run")
    assert [row["step"] for row in found] == [6, 12, 18, 24] and {row["precision"] for row in found} == {precision}
    for row in found:
        for key in ("val_loss", "val_loss_stderr", "perplexity", "bits_per_byte"):
            assert row[key] == logged[row["step"]][key]
        assert (row["num_windows"], row["data"], row["device"]) == (17, "tiny", "cpu")


def test_evaluation_reads_the_whole_split_despite_eval_tokens(folder: Path, tmp_path: Path) -> None:
    assert invoke("train.py", write_config(tmp_path / "run.py", folder / "tiny", eval_tokens=32)).returncode == 0
    assert invoke("evaluate.py", tmp_path / "run", *CPU).returncode == 0
    (row,) = read_rows(tmp_path / "run")
    assert row["num_windows"] == 17 and row["val_loss"] != read_metric_rows(tmp_path / "run")[-1]["val_loss"]


def test_second_call_changes_no_byte(run: Path) -> None:
    first = invoke("evaluate.py", run, *CPU)
    assert (first.returncode, first.stderr, first.stdout.count("\n")) == (0, "", 1) and first.stdout.startswith(
        "step 24  val loss "
    )
    before = snapshot(run)
    second = invoke("evaluate.py", run, *CPU)
    assert second.stdout == first.stdout.rstrip("\n") + "  (evaluated before)\nnothing was left to evaluate\n"
    assert snapshot(run) == before and len(read_rows(run)) == 1


def test_all_evaluates_only_new_checkpoints(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = list_checkpoints(run)[-1]
    aside = newest.rename(run / "aside")
    assert invoke("evaluate.py", run, "--all", *CPU).returncode == 0
    before = (run / "evaluations.jsonl").read_bytes()
    aside.rename(newest)
    calls = []
    original = job.evaluate
    monkeypatch.setattr(job, "evaluate", lambda *a, **k: calls.append(a) or original(*a, **k))
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert len(calls) == 1 and result.stdout.count("(evaluated before)") == 2 and "nothing" not in result.stdout
    assert (run / "evaluations.jsonl").read_bytes().startswith(before)
    assert [row["step"] for row in read_rows(run)] == [12, 18, 24]


def test_best_or_a_named_checkpoint_is_evaluated(run: Path) -> None:
    assert invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU).returncode == 0
    assert invoke("evaluate.py", run, "--best", *CPU).returncode == 0
    assert [row["step"] for row in read_rows(run)] == [12, 24]


def test_interrupted_call_is_continued_by_the_next(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = job.evaluate, [1, 1]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return original(*args, **kwargs)

    monkeypatch.setattr(job, "evaluate", interrupted)
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert (result.returncode, result.stderr) == (130, STOPPED) and [row["step"] for row in read_rows(run)] == [
        12,
        18,
    ]
    monkeypatch.undo()
    assert invoke("evaluate.py", run, "--all", *CPU).returncode == 0
    assert [row["step"] for row in read_rows(run)] == [12, 18, 24]


def test_sigterm_ends_the_command_with_a_message(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send_sigterm(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(job, "evaluate", send_sigterm)
    before = signal.getsignal(signal.SIGTERM)
    result = invoke("evaluate.py", run, *CPU)
    assert (result.returncode, result.stdout, result.stderr) == (143, "", STOPPED)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["evaluations.jsonl", "evaluations"])
def test_blocked_output_path_is_reported_before_evaluating(
    run: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (run / name).mkdir() if name.endswith(".jsonl") else (run / name).write_text("")
    monkeypatch.setattr(job, "evaluate", lambda *_, **__: pytest.fail("reported too late"))
    if name == "evaluations":
        check_error(invoke("evaluate.py", run, *CPU), 1, f"a file is in the way at {run / name}; move it elsewhere")
        return
    for arguments in ([run, *CPU], ["--compare", run]):
        check_error(invoke("evaluate.py", *arguments), 1, f"{run / name} is not a regular file; put a file there")


def test_full_disk_is_named_after_the_loss_is_printed(folder: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        run = Path(
            shutil.copytree(
                folder / "one", disk / "run", ignore=shutil.ignore_patterns("step-00000012", "step-00000018")
            )
        )
        (run / "evaluations").mkdir()
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        result = invoke("evaluate.py", run, *CPU)
        assert result.returncode == 1 and result.stdout.startswith("step 24  val loss "), result.stderr
        assert (
            f"error: no space left on the disk ({run / 'evaluations'}" in result.stderr
            and ".partial" not in result.stderr
        )
        os.truncate(disk / "filler", 0)
        assert invoke("evaluate.py", run, *CPU).stdout == result.stdout


def test_only_one_process_evaluates_a_run(run: Path) -> None:
    (run / "evaluations").mkdir()
    with FileLock(run / "evaluations" / ".lock"):
        check_error(invoke("evaluate.py", run, *CPU), 1, "another process is evaluating")


def test_batch_size_is_halved_when_memory_runs_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, sizes = job.evaluate, []

    def run_out_of_memory(model: Any, data: Any, *, batch_size: int, autocast: Any, count: Any) -> Any:
        sizes.append(batch_size)
        if batch_size > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return original(model, data, batch_size=batch_size, autocast=autocast, count=count)

    monkeypatch.setattr(job, "evaluate", run_out_of_memory)
    assert invoke("evaluate.py", run, *CPU).returncode == 0 and sizes == [4, 2, 1]
    for function, error in (
        ("evaluate", MemoryError()),
        ("load_model", RuntimeError("CUDA out of memory. Tried to allocate")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(job, function, lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            result = invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU)
        check_error(result, 1, "the model and a single window do not fit the memory of cpu; use another --device")


def test_unsupported_precision_is_replaced_with_a_warning(run: Path) -> None:
    for each in list_checkpoints(run):
        settings = open_checkpoint(each).info.origin.settings
        edit_checkpoint(each, settings=settings | {"precision": "tf32"})
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert result.stderr == "warning: the run was trained in tf32, which cpu does not support; evaluating it in fp32\n"
    assert {row["precision"] for row in read_rows(run)} == {"fp32"} and len(read_rows(run)) == 3


def test_model_that_is_not_finite_has_a_row_without_loss(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = job.load_model

    def load_nan(found: Any, model: Any) -> None:
        original(found, model)
        next(iter(model.state_dict().values())).fill_(torch.nan)

    monkeypatch.setattr(job, "load_model", load_nan)
    result = invoke("evaluate.py", run, "--prompts", 2, *CPU)
    assert (result.returncode, result.stderr) == (0, "") and "val loss n/a" in result.stdout
    (row,) = read_rows(run)
    assert row["val_loss"] is None and row["completions"] == []
    assert "n/a" in invoke("evaluate.py", "--compare", run).stdout


def test_data_option_evaluates_on_data_of_the_same_tokenizer(run: Path, tmp_path: Path) -> None:
    other = make_build(tmp_path / "other", val_repeats=9)
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    result = invoke("evaluate.py", run, "--data", other, *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (
        0,
        1,
    ) and "is not the data that the run was trained on" in result.stderr
    first, second = read_rows(run)
    assert (
        (second["data"], second["num_windows"]) == ("other", 25)
        and first["build_id"] != second["build_id"]
        and first["key"] != second["key"]
    )
    assert len(list((run / "evaluations").glob("*.safetensors"))) == 2


def test_data_option_rejects_data_that_do_not_fit(folder: Path, run: Path, tmp_path: Path) -> None:
    foreign = make_build(tmp_path / "foreign", tokenizer={"kind": "byte", "files": {}, "settings": {}})
    check_error(invoke("evaluate.py", run, "--data", foreign, *CPU), 2, "has another tokenizer than")
    authors = make_build(tmp_path / "authors", special_tokens={"<|endoftext|>": EOT_ID, "<author_Other>": AUTHOR_ID})
    check_error(invoke("evaluate.py", run, "--data", authors, *CPU), 2, "build authors with --no-authors")
    check_error(invoke("evaluate.py", run, "--data", tmp_path / "none", *CPU), 2, "no build")


def test_changed_data_of_the_run_are_rejected(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for each in list_checkpoints(run):
        settings = open_checkpoint(each).info.origin.settings
        edit_checkpoint(each, settings=settings | {"data": str(data)})
    check_error(invoke("evaluate.py", run, *CPU), 2, "or set other data of its tokenizer with --data")
    make_build(data, val_repeats=8)
    check_error(
        invoke("evaluate.py", run, *CPU), 2, f"data has changed since {list_checkpoints(run)[-1]} was trained on it"
    )
    assert invoke("evaluate.py", run, "--data", data, *CPU).returncode == 0


def test_mixture_has_the_loss_of_each_build(folder: Path, tmp_path: Path) -> None:
    other = make_build(tmp_path / "other", val_repeats=9)
    config = write_config(tmp_path / "run.py", folder / "tiny", data=f"{folder / 'tiny'}:1,{other}:3")
    assert invoke("train.py", config).returncode == 0
    result = invoke("evaluate.py", tmp_path / "run", "--prompts", 15, "--tokens", 1, *CPU)
    assert result.returncode == 0, result.stderr
    (row,) = read_rows(tmp_path / "run")
    logged = read_metric_rows(tmp_path / "run")[-1]
    assert row["num_windows"] == 17 + 25 and len(row["completions"]) == 15
    for key in ("val_loss", "val_loss_stderr", "bits_per_byte", "val_loss/tiny", "val_loss/other"):
        assert row[key] == logged[key]
    (file,) = (tmp_path / "run" / "evaluations").glob("*.safetensors")
    losses, strata = read_losses(file) or pytest.fail("not read")
    assert strata.mean_and_stderr(losses) == (row["val_loss"], row["val_loss_stderr"]) and strata.shares == (0.25, 0.75)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run is given, expected RUN, or --compare RUN RUN"),
        (["RUN", "--all", "--best"], "not allowed with argument"),
        (["RUN/checkpoints/step-00000012", "--all"], "--all evaluates those of a run"),
        (["RUN/checkpoints/step-00000012", "--best"], "--best chooses among those of a run"),
        (["RUN/build"], "is neither a checkpoint nor a run"),
        (["RUN/nosuch", "--all"], "is neither a checkpoint nor a run"),
        (["RUN", "--prompts", "0"], "--prompts must be at least 1, got 0"),
        (["RUN", "--prompts", "-1"], "--prompts must be at least 1, got -1"),
        (["RUN", "--prompts", "7"], "--prompts is 7, but the validation split has only 6 documents"),
        (["RUN", "--questions", "7"], "--prompts is 7, but the validation split has only 6 documents"),
        (["RUN", "--prompts", "x"], "there is no file of prompts x"),
        (["RUN", "--questions", "1", "--prompts", "p"], "not allowed with argument"),
        (["RUN", "--prompts", "RUN"], "is not a regular file; put a file there, not a folder"),
        (["RUN", "--prompts", "/dev/zero"], "/dev/zero is not a regular file"),
        (["RUN", "--prompts", ""], "--prompts is empty; name a file or a folder"),
        (["RUN", "--prompts", "9" * 5000], "--prompts must be a whole number, got '999"),
        (["RUN", "--prompts", "~nosuchuser/p"], "but the home directory of '~nosuchuser' is not known"),
        (["RUN", "--tokens", "1e3", "--prompts", "1"], "--tokens must be a whole number, got '1e3'"),
        (["RUN", "--prompts", "1", "--temperature", "1e400"], "temperature must be at most 1e+18, got inf"),
        (["RUN", "--data", "~nosuchuser/p"], "--data is '~nosuchuser/p', but the home directory of"),
        (["RUN", "--compare", ""], "--compare is empty; name a file or a folder"),
        (["RUN", "--compare", "RUN/a", "--compare", "RUN/nosuch"], "/run/a; name the out_dir of a run"),
        ([""], "RUN is empty; name a file or a folder"),
        (["--device", "cpu", "--compare", "RUN"], "--device needs a run to evaluate, and --compare alone"),
        (["RUN", "--prompts", "RUN/nosuch"], "there is no file of prompts"),
        (["RUN", "--prompts", "1", "--tokens", "0"], "--tokens must be at least 1, got 0"),
        (["RUN", "--tokens", "5"], "--tokens applies to completions, and there are no prompts"),
        (["RUN", "--temperature", "0"], "--temperature applies to completions, and there are no prompts"),
        (["RUN", "--prompts", "1", "--temperature", "-1"], "temperature must be at least 0, got -1.0"),
        (["RUN", "--prompts", "1", "--temperature", "nan"], "temperature must be at most 1e+18, got nan"),
        (["RUN", "--device", "tpu"], "device must be auto, cpu, mps, cuda or cuda:N such as cuda:1, got 'tpu'"),
        (["RUN", "--data", "no such"], "a build cannot be named"),
        (["--compare", "RUN"], "has no evaluations; make one: python train/evaluate.py"),
        (["RUN", "--compare", "RUN/../run"], "is named 2 times; name each run once"),
        (["RUN", "--compare", "RUN/nosuch"], "there is no run RUN/nosuch; name the out_dir of a run"),
        (["--compare", "RUN/nosuch"], "there is no run RUN/nosuch; name the out_dir of a run"),
        (["RUN", "--compare", "RUN/build"], "has no evaluations; make one"),
        (["--all", "--compare", "RUN"], "--all needs a run to evaluate, and --compare alone evaluates none"),
        (["--mlflow", "--compare", "RUN"], "--mlflow needs a run to evaluate, and --compare alone evaluates none"),
    ],
)
def test_misuse_is_reported_on_one_line(run: Path, arguments: list[str], message: str) -> None:
    result = invoke("evaluate.py", *(argument.replace("RUN", str(run)) for argument in arguments))
    check_error(result, 2, message.replace("RUN", str(run)) if "/nosuch" in message else message)
    assert not (run / "evaluations.jsonl").exists()


def test_json_prints_one_row_per_evaluation(run: Path) -> None:
    result = invoke("evaluate.py", run, "--json", "--prompts", 1, "--tokens", 4, *CPU)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    row = json.loads(line)
    assert row in [json.loads(text) for text in (run / "evaluations.jsonl").read_text().splitlines()]
    assert len(row["completions"]) == 1 and row["val_loss"] > 0
    assert invoke("evaluate.py", run, "--json", "--prompts", 1, "--tokens", 4, *CPU).stdout == result.stdout


def test_quiet_prints_results_only(run: Path) -> None:
    invoke("evaluate.py", run, *CPU)
    result = invoke("evaluate.py", run, "--quiet", *CPU)
    assert result.stdout.count("\n") == 1 and "val loss" in result.stdout


def test_json_and_compare_exclude_each_other(run: Path) -> None:
    result = invoke("evaluate.py", run, "--json", "--compare", run)
    assert result.returncode == 2 and "leave one of them out" in result.stderr
