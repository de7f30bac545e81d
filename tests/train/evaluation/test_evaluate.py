"""The command that evaluates checkpoints: real runs, each evaluated once, compared window by window."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from tests.helpers.runs import AUTHOR_ID, EOT_ID, SENTENCE, invoke, make_build, rows, small_disk, write_config
from train.evaluation import job as evaluation_job
from train.evaluation import mlflow_runs as mlflow_evaluations
from train.evaluation.comparison import table
from train.evaluation.prompts import draw_questions
from train.evaluation.results import read_losses
from train.run import checkpoint
from train.run.checkpoint import list_checkpoints
from train.trackers import client as trackers

CPU = ("--device", "cpu")
STOPPED = "stopped; what is evaluated is kept, and the same command goes on with the rest\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build, and two runs on it."""
    folder = tmp_path_factory.mktemp("evaluated")
    build = make_build(folder / "tiny")
    for name, settings in (("one", {}), ("two", {"seed": 7, "n_embd": 16})):
        assert invoke("train.py", write_config(folder / f"{name}.py", build, **settings)).returncode == 0
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "one", tmp_path / "run"))


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def snapshot(run: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def check_one_line(result: Any, status: int, complaint: str) -> None:
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1), (
        result.stderr + result.stdout
    )
    assert complaint in result.stderr, result.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_numbers_are_those_of_training(folder: Path, tmp_path: Path, precision: str) -> None:
    config = write_config(tmp_path / "run.py", folder / "tiny", precision=precision, keep_checkpoints=10)
    assert invoke("train.py", config).returncode == 0
    result = invoke("evaluate.py", tmp_path / "run", "--all", *CPU)
    assert (result.returncode, result.stderr) == (0, "")
    told = {row["step"]: row for row in rows(tmp_path / "run") if "val_loss" in row}
    found = evaluations(tmp_path / "run")
    assert [row["step"] for row in found] == [6, 12, 18, 24] and {row["precision"] for row in found} == {precision}
    for row in found:
        for key in ("val_loss", "val_loss_stderr", "perplexity", "bits_per_byte"):
            assert row[key] == told[row["step"]][key]
        assert (row["num_windows"], row["data"], row["device"]) == (17, "tiny", "cpu")


def test_the_whole_split_is_read_whatever_training_read(folder: Path, tmp_path: Path) -> None:
    assert invoke("train.py", write_config(tmp_path / "run.py", folder / "tiny", eval_tokens=32)).returncode == 0
    assert invoke("evaluate.py", tmp_path / "run", *CPU).returncode == 0
    (row,) = evaluations(tmp_path / "run")
    assert row["num_windows"] == 17 and row["val_loss"] != rows(tmp_path / "run")[-1]["val_loss"]


def test_a_second_call_changes_no_byte(run: Path) -> None:
    first = invoke("evaluate.py", run, *CPU)
    assert (first.returncode, first.stderr, first.stdout.count("\n")) == (0, "", 1) and first.stdout.startswith(
        "step 24  val loss "
    )
    before = snapshot(run)
    second = invoke("evaluate.py", run, *CPU)
    assert second.stdout == first.stdout.rstrip("\n") + "  (evaluated before)\nnothing was left to evaluate\n"
    assert snapshot(run) == before and len(evaluations(run)) == 1


def test_a_new_checkpoint_is_evaluated_and_no_other(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = list_checkpoints(run)[-1]
    aside = newest.rename(run / "aside")
    assert invoke("evaluate.py", run, "--all", *CPU).returncode == 0
    before = (run / "evaluations.jsonl").read_bytes()
    aside.rename(newest)
    calls = []
    really = evaluation_job.evaluate
    monkeypatch.setattr(evaluation_job, "evaluate", lambda *a, **k: calls.append(a) or really(*a, **k))
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert len(calls) == 1 and result.stdout.count("(evaluated before)") == 2 and "nothing" not in result.stdout
    assert (run / "evaluations.jsonl").read_bytes().startswith(before)
    assert [row["step"] for row in evaluations(run)] == [12, 18, 24]


def test_the_best_or_a_named_checkpoint(run: Path) -> None:
    assert invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU).returncode == 0
    assert invoke("evaluate.py", run, "--best", *CPU).returncode == 0
    assert [row["step"] for row in evaluations(run)] == [12, 24]


def test_a_torn_last_line_is_cut_off_by_the_next_row(run: Path) -> None:
    assert invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU).returncode == 0
    path = run / "evaluations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert "evaluated before" in invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU).stdout
    assert path.read_bytes() == whole + whole[:40]
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    assert path.read_bytes().startswith(whole) and [row["step"] for row in evaluations(run)] == [12, 24]


@pytest.mark.parametrize("line", ["[]", "{}", "x", '{"step": "1"}', None])
def test_a_row_that_is_none_is_told(run: Path, line: str | None) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    path = run / "evaluations.jsonl"
    if line is None:
        line = path.read_text().replace('"val_loss": 1', '"val_loss": "1"', 1).strip().replace('"1".', '"1" ')
    path.write_text(f"{line}\n" + path.read_text())
    result = invoke("evaluate.py", run, *CPU)
    check_one_line(result, 1, "line 1 is no evaluation (")
    assert "Error" not in result.stderr


def test_what_was_done_stays_when_it_is_interrupted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, left = evaluation_job.evaluate, [1, 1]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return really(*args, **kwargs)

    monkeypatch.setattr(evaluation_job, "evaluate", interrupted)
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert (result.returncode, result.stderr) == (130, STOPPED) and [row["step"] for row in evaluations(run)] == [
        12,
        18,
    ]
    monkeypatch.undo()
    assert invoke("evaluate.py", run, "--all", *CPU).returncode == 0
    assert [row["step"] for row in evaluations(run)] == [12, 18, 24]


def test_an_order_to_terminate_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ordered(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(evaluation_job, "evaluate", ordered)
    before = signal.getsignal(signal.SIGTERM)
    result = invoke("evaluate.py", run, *CPU)
    assert (result.returncode, result.stdout, result.stderr) == (143, "", STOPPED)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("place", ["evaluations.jsonl", "evaluations"])
def test_what_is_in_the_way_is_told_before_anything_is_evaluated(
    run: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (run / place).mkdir() if place.endswith(".jsonl") else (run / place).write_text("")
    monkeypatch.setattr(evaluation_job, "evaluate", lambda *_, **__: pytest.fail("told too late"))
    what = "a folder" if place.endswith(".jsonl") else "a file"
    check_one_line(invoke("evaluate.py", run, *CPU), 1, f"{what} is in the way at {run / place}; move it elsewhere")
    if what == "a folder":
        check_one_line(
            invoke("evaluate.py", "--compare", run), 1, f"{what} is in the way at {run / place}; move it elsewhere"
        )


def test_a_full_disk_is_named_and_the_loss_told(folder: Path, tmp_path: Path) -> None:
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


def test_a_damaged_checkpoint_is_a_line_and_the_rest_goes_on(run: Path) -> None:
    weights = run / "checkpoints" / "step-00000018" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1) and "step-00000018" in result.stderr
    assert result.stderr.startswith("warning: ") and "passed over" in result.stderr
    assert [row["step"] for row in evaluations(run)] == [12, 24]


def test_a_checkpoint_that_vanishes_is_a_line_and_the_rest_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As training deletes it, which keeps only the last ones."""
    really = evaluation_job.check_shapes

    def vanished(found: Any, config: Any) -> None:
        if found.step == 12:
            shutil.rmtree(found.folder)
            shutil.rmtree(run / "checkpoints" / "step-00000018")
        really(found, config)

    monkeypatch.setattr(evaluation_job, "check_shapes", vanished)
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (0, 2), result.stderr
    assert all(line.startswith("warning: ") and "passed over" in line for line in result.stderr.splitlines())
    assert [row["step"] for row in evaluations(run)] == [24]


@pytest.mark.parametrize("which", [(), ("--best",), ("--all",)])
@pytest.mark.parametrize("when", ["opened", "loaded"])
def test_checkpoints_that_training_deletes_meanwhile_are_listed_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, which: tuple[str, ...], when: str
) -> None:
    """As a run with fast checkpoints does: those that were listed are all gone, and there is a newer one."""
    later = list_checkpoints(run)[-1].rename(run / "later")
    best = json.loads((later / "checkpoint.json").read_text())["watch"]["best_step"]
    assert best == 24
    for each in list_checkpoints(run):
        info = each / "checkpoint.json"
        told = json.loads(info.read_text())
        told["watch"]["best_step"] = told["step"]
        info.write_text(json.dumps(told))

    def train_on() -> None:
        if later.exists():
            for each in list_checkpoints(run):
                shutil.rmtree(each)
            later.rename(run / "checkpoints" / "step-00000024")

    module, name = (checkpoint, "_check_file") if when == "opened" else (evaluation_job, "check_shapes")
    really = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a: (train_on(), really(*a))[1])
    result = invoke("evaluate.py", run, *which, *CPU)
    assert (result.returncode, [row["step"] for row in evaluations(run)]) == (0, [24]), result.stderr
    assert all(line.startswith("warning: ") and "passed over" in line for line in result.stderr.splitlines())


def test_checkpoints_that_are_always_gone_are_listed_a_few_times(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest, asked = list_checkpoints(run)[-1], []

    def gone(found: Any, *_: Any) -> None:
        asked.append(found.step)
        shutil.rmtree(found.folder)
        shutil.copytree(kept, newest.with_name(f"step-{found.step + 1:08d}"))
        info = newest.with_name(f"step-{found.step + 1:08d}") / "checkpoint.json"
        info.write_text(info.read_text().replace(f'"step": {24}', f'"step": {found.step + 1}'))
        raise checkpoint.CheckpointError("gone")

    kept = shutil.copytree(newest, run / "kept")
    monkeypatch.setattr(evaluation_job, "check_shapes", gone)
    result = invoke("evaluate.py", run, *CPU)
    assert (result.returncode, asked) == (1, [24, 25, 26, 27, 28]) and "no checkpoint of" in result.stderr


def test_where_all_are_damaged_it_fails(run: Path) -> None:
    for each in list_checkpoints(run):
        (each / "model.safetensors").write_bytes(b"")
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith("error: no checkpoint of ")
    assert not (run / "evaluations.jsonl").exists()


def test_weights_that_are_not_finite_are_a_row_without_a_loss(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = evaluation_job.load_model

    def ruined(found: Any, model: Any) -> None:
        really(found, model)
        next(iter(model.state_dict().values())).fill_(torch.nan)

    monkeypatch.setattr(evaluation_job, "load_model", ruined)
    result = invoke("evaluate.py", run, "--questions", 2, *CPU)
    assert (result.returncode, result.stderr) == (0, "") and "val loss n/a" in result.stdout
    (row,) = evaluations(run)
    assert row["val_loss"] is None and row["answers"] == []
    assert "n/a" in invoke("evaluate.py", "--compare", run).stdout


def test_one_process_at_a_time(run: Path) -> None:
    (run / "evaluations").mkdir()
    with FileLock(run / "evaluations" / ".lock"):
        check_one_line(invoke("evaluate.py", run, *CPU), 1, "another process is evaluating")


def test_memory_that_holds_fewer_windows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, sizes = evaluation_job.evaluate, []

    def short(model: Any, data: Any, *, batch_size: int, autocast: Any) -> Any:
        sizes.append(batch_size)
        if batch_size > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return really(model, data, batch_size=batch_size, autocast=autocast)

    monkeypatch.setattr(evaluation_job, "evaluate", short)
    assert invoke("evaluate.py", run, *CPU).returncode == 0 and sizes == [4, 2, 1]
    for function, error in (
        ("evaluate", MemoryError()),
        ("load_model", RuntimeError("CUDA out of memory. Tried to allocate")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(evaluation_job, function, lambda *_, error=error, **__: (_ for _ in ()).throw(error))
            result = invoke("evaluate.py", run / "checkpoints" / "step-00000012", *CPU)
        check_one_line(result, 1, "the model and a single window do not fit the memory of cpu; take another --device")


def test_a_precision_that_the_device_lacks_is_told(run: Path) -> None:
    for each in list_checkpoints(run):
        info = each / "checkpoint.json"
        told = json.loads(info.read_text())
        told["settings"]["precision"] = "tf32"
        info.write_text(json.dumps(told))
    result = invoke("evaluate.py", run, "--all", *CPU)
    assert result.stderr == "warning: the run trained in tf32, which cpu cannot; it is evaluated in fp32\n"
    assert {row["precision"] for row in evaluations(run)} == {"fp32"} and len(evaluations(run)) == 3


# --- data


def test_other_data_of_the_same_tokenizer(run: Path, tmp_path: Path) -> None:
    other = make_build(tmp_path / "other", val_repeats=9)
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    result = invoke("evaluate.py", run, "--data", other, *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (
        0,
        1,
    ) and "is not the data that the run trained on" in result.stderr
    one, two = evaluations(run)
    assert (
        (two["data"], two["num_windows"]) == ("other", 25)
        and one["build_id"] != two["build_id"]
        and one["key"] != two["key"]
    )
    assert len(list((run / "evaluations").glob("*.safetensors"))) == 2


def test_data_that_do_not_fit(folder: Path, run: Path, tmp_path: Path) -> None:
    foreign = make_build(tmp_path / "foreign", tokenizer={"kind": "byte", "files": {}, "settings": {}})
    check_one_line(invoke("evaluate.py", run, "--data", foreign, *CPU), 2, "has another tokenizer than")
    authors = make_build(tmp_path / "authors", special_tokens={"<|endoftext|>": EOT_ID, "<author_Other>": AUTHOR_ID})
    check_one_line(invoke("evaluate.py", run, "--data", authors, *CPU), 2, "build authors with --no-authors")
    check_one_line(invoke("evaluate.py", run, "--data", tmp_path / "none", *CPU), 2, "no build")


def test_the_runs_own_data_must_be_what_they_were(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for each in list_checkpoints(run):
        info = each / "checkpoint.json"
        told = json.loads(info.read_text())
        told["settings"]["data"] = str(data)
        info.write_text(json.dumps(told))
    check_one_line(invoke("evaluate.py", run, *CPU), 2, "or name other data of its tokenizer by --data")
    make_build(data, val_repeats=8)
    check_one_line(
        invoke("evaluate.py", run, *CPU), 2, f"data is not what {list_checkpoints(run)[-1]} was trained on any more"
    )
    assert invoke("evaluate.py", run, "--data", data, *CPU).returncode == 0


def test_a_mixture(folder: Path, tmp_path: Path) -> None:
    other = make_build(tmp_path / "other", val_repeats=9)
    config = write_config(tmp_path / "run.py", folder / "tiny", data=f"{folder / 'tiny'}:1,{other}:3")
    assert invoke("train.py", config).returncode == 0
    result = invoke("evaluate.py", tmp_path / "run", "--questions", 15, "--tokens", 1, *CPU)
    assert result.returncode == 0, result.stderr
    (row,) = evaluations(tmp_path / "run")
    told = rows(tmp_path / "run")[-1]
    assert row["num_windows"] == 17 + 25 and len(row["answers"]) == 15
    for key in ("val_loss", "val_loss_stderr", "bits_per_byte", "val_loss/tiny", "val_loss/other"):
        assert row[key] == told[key]
    (file,) = (tmp_path / "run" / "evaluations").glob("*.safetensors")
    losses, strata = read_losses(file) or pytest.fail("not read")
    assert strata.mean_and_stderr(losses) == (row["val_loss"], row["val_loss_stderr"]) and strata.shares == (0.25, 0.75)


# --- questions


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    """A run that has learnt its sentence."""
    config = write_config(
        folder / "learned.py", folder / "tiny", max_steps=150, dropout=0.0, eval_interval=150, block_size=48
    )
    assert invoke("train.py", config).returncode == 0
    return folder / "learned"


def test_prompts_are_answered_as_sampling_answers_them(learned: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffthe quick \r\n\nlazy\n".encode())
    result = invoke("evaluate.py", learned, "--prompts", file, "--tokens", 60, *CPU)
    assert (result.returncode, result.stderr) == (0, "")
    answers = evaluations(learned)[-1]["answers"]
    assert [each["prompt"] for each in answers] == ["the quick ", "lazy"]
    assert answers[0]["answer"] == SENTENCE.removeprefix("the quick ")
    for each in answers:
        sampled = invoke(
            "sample.py", learned, "--prompt", each["prompt"], "--temperature", 0, "--tokens", 60, *CPU
        ).stdout
        assert sampled == each["prompt"] + each["answer"] + "\n"
        assert f": {each['prompt']}\n" in result.stdout and each["answer"] in result.stdout
    again = tmp_path / "again.jsonl"
    again.write_text('{"prompt": "the quick ", "other": 1}\n{"prompt": "lazy"}\n')
    before = snapshot(learned)
    assert "nothing was left" in invoke("evaluate.py", learned, "--prompts", again, "--tokens", 60, *CPU).stdout
    assert snapshot(learned) == before, "the same prompts, however they are spelled"


def test_other_questions_are_another_evaluation_of_the_same_losses(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    monkeypatch.setattr(evaluation_job, "evaluate", lambda *_, **__: pytest.fail("the losses are known"))
    for extra in (
        ["--questions", 2],
        ["--questions", 3],
        ["--questions", 3, "--tokens", 5],
        ["--questions", 3, "--temperature", 1],
    ):
        assert invoke("evaluate.py", run, *extra, *CPU).returncode == 0
    found = evaluations(run)
    assert len({row["key"] for row in found}) == 5 and len({row["val_loss"] for row in found}) == 1
    assert [len(row["answers"]) for row in found] == [0, 2, 3, 3, 3]
    assert len(list((run / "evaluations").glob("*.safetensors"))) == 1


def test_losses_that_are_damaged_are_made_again(run: Path) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    (file,) = (run / "evaluations").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert invoke("evaluate.py", run, "--questions", 1, *CPU).returncode == 0
    assert file.read_bytes() == whole and evaluations(run)[0]["val_loss"] == evaluations(run)[1]["val_loss"]


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
def test_losses_that_none_wrote(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_losses(tmp_path / "x.safetensors") is None


def test_the_loss_is_told_before_anything_is_asked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_job, "generate", interrupted)
    result = invoke("evaluate.py", run, "--questions", 1, *CPU)
    assert (
        result.returncode == 130 and result.stdout.startswith("step 24  val loss ") and result.stdout.count("\n") == 1
    )
    assert not (run / "evaluations.jsonl").exists()
    monkeypatch.undo()
    monkeypatch.setattr(evaluation_job, "evaluate", lambda *_, **__: pytest.fail("the losses are known"))
    again = invoke("evaluate.py", run, "--questions", 1, *CPU)
    assert again.stdout.startswith(result.stdout) and len(evaluations(run)[0]["answers"]) == 1


def test_questions_are_beginnings_of_validation_documents(learned: Path) -> None:
    assert invoke("evaluate.py", learned, "--questions", 6, "--tokens", 60, *CPU).returncode == 0
    for each in evaluations(learned)[-1]["answers"]:
        assert each["prompt"] == "<author_Anna_Akimova> " + SENTENCE[:16] and each["answer"] == SENTENCE[16:]


def test_fewer_questions_are_the_first_of_more(folder: Path) -> None:
    class Spelling:
        def decode(self, ids: np.ndarray) -> str:
            return str(ids.tolist())

    class Documents:
        def __init__(self) -> None:
            special_tokens = {"<a>": 1, "<b>": 2, "<end>": 3}
            self.manifest = {"splits": {"val": {"documents": 1000}}, "special_tokens": special_tokens, "eot_id": 3}

        def document(self, _: str, number: int) -> np.ndarray:
            return np.array([1, 2, *[10 + number] * (number % 50), 3])

    builds: Any = types.SimpleNamespace(builds=[Documents(), Documents()], manifest=Documents().manifest)
    ten, thousands = (draw_questions(builds, count, Spelling()) for count in (10, 2000))
    assert thousands[:10] == ten and len({tuple(question.ids) for question in ten}) == 10
    for question in thousands:
        text = question.ids[2:]
        assert question.ids[:2] == [1, 2] and 3 not in question.ids and question.prompt == f"<a> <b> {text}"
        assert len(text) == (max(1, min(16, (text[0] - 10) % 50 // 2)) if text else 0)


def test_of_a_long_prompt_the_end_is_asked_and_kept(learned: Path, tmp_path: Path) -> None:
    prompt = (SENTENCE.strip() + " ") * 1000
    (tmp_path / "long.txt").write_text(prompt + "\n" + prompt[-48:] + "\n")
    result = invoke("evaluate.py", learned, "--prompts", tmp_path / "long.txt", "--tokens", 20, *CPU)
    assert result.returncode == 0 and len(result.stdout) < 1000
    long, short = evaluations(learned)[-1]["answers"]
    assert (long["prompt"], short["prompt"]) == ("…" + prompt[-48:], prompt[-48:]) and long["answer"] == short["answer"]
    sampled = invoke("sample.py", learned, "--prompt", prompt, "--temperature", 0, "--tokens", 20, *CPU).stdout
    assert sampled.rstrip("\n") == (prompt + long["answer"]).rstrip("\n")


def test_a_prompt_that_the_tokenizer_drops_is_answered_from_the_end_of_a_text(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = types.SimpleNamespace(
        encode_text=lambda _: np.zeros(0, np.uint32), decode_bytes=lambda ids: b"x" * len(ids)
    )
    monkeypatch.setattr(evaluation_job, "load_text_tokenizer", lambda *_: tokenizer)
    (run / "p.jsonl").write_text('{"prompt": " "}\n')
    result = invoke("evaluate.py", run, "--prompts", run / "p.jsonl", "--tokens", 3, *CPU)
    assert (result.returncode, result.stderr, len(evaluations(run)[-1]["answers"])) == (0, "", 1)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.txt", b"", "has no prompts"),
        ("p.txt", b"\n \n", "has no prompts"),
        ("p.txt", b"\xff", "is not UTF-8"),
        ("p.txt", "Ж\n".encode(), "is not in this build's alphabet"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}\n',
            'line 2 is {"text": "b"}, wanted an object with a text as "prompt"',
        ),
        ("p.jsonl", b'{"prompt": 1}\n', 'wanted an object with a text as "prompt"'),
        ("p.jsonl", b'{"prompt": ""}\n', 'wanted an object with a text as "prompt"'),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', 'wanted an object with a text as "prompt"'),
        ("p.jsonl", b"[" * 100_000 + b"\n", 'wanted an object with a text as "prompt"'),
        ("p.jsonl", b"text\n", 'wanted an object with a text as "prompt"'),
    ],
)
def test_files_of_prompts_that_are_none(run: Path, tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = invoke("evaluate.py", run, "--prompts", tmp_path / name, *CPU)
    check_one_line(result, result.returncode, complaint)
    assert "Error)" not in result.stderr
    assert result.returncode in (1, 2) and len(result.stderr) < 600 and not (run / "evaluations.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no run is named, wanted RUN, or --compare RUN RUN"),
        (["RUN", "--all", "--best"], "not allowed with argument"),
        (["RUN/checkpoints/step-00000012", "--all"], "--all takes those of a run"),
        (["RUN/checkpoints/step-00000012", "--best"], "--best chooses among those of a run"),
        (["RUN/build"], "is neither a checkpoint nor a run"),
        (["RUN/nosuch", "--all"], "is neither a checkpoint nor a run"),
        (["RUN", "--questions", "0"], "--questions is 0, wanted 1 or more"),
        (["RUN", "--questions", "7"], "--questions is 7, the validation split has 6 documents; ask for fewer"),
        (["RUN", "--questions", "x"], "invalid int value"),
        (["RUN", "--questions", "1", "--prompts", "p"], "not allowed with argument"),
        (["RUN", "--prompts", "RUN"], "is a folder; name a file in it"),
        (["RUN", "--prompts", "RUN/nosuch"], "there is no file of prompts"),
        (["RUN", "--questions", "1", "--tokens", "0"], "--tokens is 0, wanted 1 or more"),
        (["RUN", "--tokens", "5"], "--tokens is of answers, and nothing is asked"),
        (["RUN", "--temperature", "0"], "--temperature is of answers, and nothing is asked"),
        (["RUN", "--questions", "1", "--temperature", "-1"], "temperature is -1.0"),
        (["RUN", "--questions", "1", "--temperature", "nan"], "temperature is nan"),
        (["RUN", "--device", "tpu"], "device is 'tpu'"),
        (["RUN", "--data", "no such"], "a build cannot be named"),
        (["--compare", "RUN"], "has no evaluations; make one: python train/evaluate.py"),
        (["RUN", "--compare", "RUN/../run"], "is named 2 times; name each run once"),
        (["RUN", "--compare", "RUN/nosuch"], "there is no run RUN/nosuch; name the out_dir of a run"),
        (["--compare", "RUN/nosuch"], "there is no run RUN/nosuch; name the out_dir of a run"),
        (["RUN", "--compare", "RUN/build"], "has no evaluations; make one"),
        (["--all", "--compare", "RUN"], "--all evaluates, and --compare alone does not"),
        (["--mlflow", "--compare", "RUN"], "--mlflow evaluates, and --compare alone does not"),
    ],
)
def test_misuse(run: Path, arguments: list[str], complaint: str) -> None:
    result = invoke("evaluate.py", *(argument.replace("RUN", str(run)) for argument in arguments))
    check_one_line(result, 2, complaint.replace("RUN", str(run)) if "/nosuch" in complaint else complaint)
    assert not (run / "evaluations.jsonl").exists()


def test_a_checkpoint_outside_its_run(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(list_checkpoints(run)[-1], tmp_path / "elsewhere" / "checkpoint")
    check_one_line(invoke("evaluate.py", alone, *CPU), 2, "lies in no run")


# --- comparison


def test_two_runs_are_compared_window_by_window(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (Path(shutil.copytree(folder / name, tmp_path / name)) for name in ("one", "two"))
    monkeypatch.setenv("COLUMNS", "100")
    assert invoke("evaluate.py", two, *CPU).returncode == 0
    result = invoke("evaluate.py", one, "--compare", two, *CPU)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()[1:]
    first, second = evaluations(one)[0], evaluations(two)[0]
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
    kept = [load_file(next((run / "evaluations").glob("*.safetensors")))["losses"].double() for run in (one, two)]
    gain = kept[1] - kept[0]
    stderr = (gain.std() / 17**0.5).item()
    assert lines[3] == f"two − one: {gain.mean():+.4f} ± {stderr:.4f} nats a token on the same 17 windows, beyond noise"
    assert len({len(line) for line in lines[:3]}) == 1
    before = snapshot(tmp_path)
    assert invoke("evaluate.py", "--compare", one, two).stdout.splitlines() == lines
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("damage", ["unlink", "cut", "folder", "another"])
def test_losses_that_are_missing_are_told_and_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    one, two = (Path(shutil.copytree(folder / name, tmp_path / name)) for name in ("one", "two"))
    monkeypatch.setenv("COLUMNS", "1000")
    for each in (one, two):
        assert invoke("evaluate.py", each, "--questions", 1, *CPU).returncode == 0
    compared = invoke("evaluate.py", "--compare", one, two).stdout
    rows_before = evaluations(two)
    (file,) = (two / "evaluations").glob("*.safetensors")
    whole = file.read_bytes()
    if damage == "folder":
        shutil.rmtree(two / "evaluations")
    elif damage == "unlink":
        file.unlink()
    elif damage == "another":  # whole, of as many windows as no evaluation of this row
        save_file(
            {"losses": torch.ones(3), "num_windows": torch.tensor([3]), "shares": torch.ones(1, dtype=torch.float64)},
            file,
        )
    else:
        file.write_bytes(whole[:-4])
    told = invoke("evaluate.py", "--compare", one, two).stdout.splitlines()[-1]
    newest = list_checkpoints(two)[-1]
    assert f"the losses of the windows of {two}, step 24 on tiny, are missing or damaged" in told
    assert told.endswith(f"python train/evaluate.py {newest}") and str(one) not in told
    result = invoke("evaluate.py", two, "--questions", 1, *CPU)
    assert (result.returncode, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert "(evaluated before; the losses of its windows were missing)" in result.stdout
    assert file.read_bytes() == whole and evaluations(two) == rows_before
    assert invoke("evaluate.py", "--compare", one, two).stdout == compared
    file.unlink()
    shutil.rmtree(newest)
    assert "this one's checkpoint is gone" in invoke("evaluate.py", "--compare", one, two).stdout


def test_runs_on_other_windows_have_no_difference(
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


def test_runs_are_compared_on_data_that_both_have(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_build(tmp_path / "other", val_repeats=9)
    two = Path(shutil.copytree(folder / "two", tmp_path / "two"))
    monkeypatch.setenv("COLUMNS", "1000")
    for each in (run, two):
        assert invoke("evaluate.py", each, *CPU).returncode == 0
    for last in (run, two):
        assert invoke("evaluate.py", last, "--data", other, *CPU).returncode == 0
        if last is run:  # which alone was evaluated on the other data, and last
            for pair in ((run, two), (two, run)):
                assert "on the same 17 windows" in invoke("evaluate.py", "--compare", *pair).stdout
    assert "on the same 25 windows" in invoke("evaluate.py", "--compare", run, two).stdout
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text(lines[1])
    (two / "evaluations.jsonl").write_text((two / "evaluations.jsonl").read_text().splitlines(keepends=True)[0])
    told = invoke("evaluate.py", "--compare", run, two).stdout
    assert told.endswith("; evaluate both with the same --data, where they share a tokenizer\n")


def test_the_newest_or_the_best_is_compared(run: Path) -> None:
    assert invoke("evaluate.py", run, "--all", *CPU).returncode == 0
    path = run / "evaluations.jsonl"
    changed = evaluations(run)
    changed[1]["val_loss"] = 0.5
    again = changed[0] | {"step": 24, "val_loss": 0.7, "num_parameters": 77}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*changed[::-1], again]))
    assert invoke("evaluate.py", "--compare", run).stdout.splitlines()[1].endswith(" 77"), (
        "trained and evaluated a second time"
    )
    assert invoke("evaluate.py", "--compare", run).stdout.splitlines()[1].split()[1] == "24"
    assert invoke("evaluate.py", "--best", "--compare", run).stdout.splitlines()[1].split()[1] == "18"


@pytest.mark.parametrize("width", [1, 10, 20, 30, 45, 60, 80, 200])
def test_a_table_fits_the_terminal(width: int) -> None:
    row = {
        "step": 1_000_000,
        "val_loss": 3.25,
        "val_loss_stderr": 0.01,
        "perplexity": 25.79,
        "bits_per_byte": None,
        "num_parameters": 10**9,
    }
    lines = table([("a" * 100, row), ("b", row | {"val_loss": None, "val_loss_stderr": None})], width)
    assert all(len(line) <= width for line in lines) and len({len(line) for line in lines}) == 1
    if width >= 80:
        assert (
            "parameters" in lines[0]
            and ("…" in lines[1]) == (width == 80)
            and "3.2500 ± 0.0100" in lines[1]
            and " n/a " in lines[2]
        )


def test_a_perplexity_beyond_all_measure_is_short() -> None:
    row = {
        "step": 1,
        "val_loss": 690.0,
        "val_loss_stderr": None,
        "perplexity": 4.6e299,
        "bits_per_byte": None,
        "num_parameters": 1,
    }
    assert table([("a", row)], 80)[1].split() == ["a", "1", "690.0000", "4.6e+299", "n/a", "1"]


def test_names_of_runs_are_obeyed_by_no_terminal(run: Path, tmp_path: Path) -> None:
    strange = run.rename(tmp_path / "a\x1b[31m\nb")
    assert invoke("evaluate.py", strange, *CPU).returncode == 0
    shown = invoke("evaluate.py", "--compare", strange).stdout
    assert "\x1b" not in shown and shown.count("\n") == 2


# --- MLflow


class Server:
    """What an MLflow server keeps, behind a client with the functions that are called; it refuses the requests that are in `refused`."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        tag, value = filter_string.removeprefix("tags.").split(" = ")
        found = [
            i
            for i, run in self.runs.items()
            if run["experiment"] in experiment_ids and run["tags"].get(tag) == value.strip("'")
        ]
        return [self._info(i) for i in found[:max_results]]

    def _info(self, i: str) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=i, status=self.runs[i]["status"]))

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        i = f"run{len(self.runs)}"
        self.runs[i] = {
            "experiment": experiment_id,
            "name": run_name,
            "tags": tags,
            "status": "RUNNING",
            "metrics": {},
            "params": {},
        }
        return self._info(i)

    def log_batch(self, run_id: str, metrics: list[Any], params: list[Any]) -> None:
        if "log_batch" in self.refused:
            raise ConnectionError("no connection to http://me:secret@host\nto it")
        self.runs[run_id]["metrics"] |= {m.key: (m.value, m.step) for m in metrics}
        for param in params:
            assert self.runs[run_id]["params"].setdefault(param.key, param.value) == param.value

    def log_dict(self, run_id: str, content: dict[str, Any], file: str) -> None:
        self.runs[run_id][file] = content

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id]["status"] = "FINISHED"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda *values: types.SimpleNamespace(
        **dict(zip(("key", "value", "timestamp", "step"), values, strict=True))
    )  # type: ignore[attr-defined]
    entities.Param = lambda key, value: types.SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    exceptions = types.ModuleType("mlflow.exceptions")
    exceptions.MlflowException = OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(trackers, "_is_installed", lambda _: True)
    monkeypatch.setattr(mlflow_evaluations, "open_client", lambda: server)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return server


def test_mlflow_has_a_run_a_checkpoint_once(run: Path, server: Server) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    for _ in range(2):
        assert invoke("evaluate.py", run, "--all", "--mlflow", *CPU).returncode == 0
        assert list(server.experiments) == ["run"]
        assert [each["name"] for each in server.runs.values()] == ["run step 12", "run step 18", "run step 24"]
    by_key = {row["key"]: row for row in evaluations(run)}
    for each in server.runs.values():
        row = by_key[each["tags"]["folio_evaluation"]]
        assert each["status"] == "FINISHED" and each["metrics"]["val_loss"] == (row["val_loss"], row["step"])
        assert set(each["metrics"]) == {"val_loss", "val_loss_stderr", "perplexity", "bits_per_byte"}
        assert each["params"]["build_id"] == row["build_id"] and each["params"]["data"] == "tiny"
    assert invoke("evaluate.py", run, "--mlflow", "--questions", 1, *CPU).returncode == 0
    assert len(server.runs) == 4 and server.runs["run3"]["answers.json"]["answers"] == evaluations(run)[-1]["answers"]


def test_mlflow_that_fails_loses_nothing_and_is_completed(run: Path, server: Server) -> None:
    server.refused.add("log_batch")
    result = invoke("evaluate.py", run, "--mlflow", *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "MLflow did not take step 24 (no connection to http://host); run the same command again" in result.stderr
    assert len(evaluations(run)) == 1 and server.runs["run0"]["status"] == "RUNNING"
    server.refused.clear()
    assert "step 24 is logged to MLflow" in invoke("evaluate.py", run, "--mlflow", *CPU).stdout
    assert (
        len(server.runs) == 1
        and server.runs["run0"]["status"] == "FINISHED"
        and len(server.runs["run0"]["metrics"]) == 4
    )


def test_mlflows_own_variable_names_the_experiment(run: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert invoke("evaluate.py", run, "--mlflow", *CPU).returncode == 0
    assert list(server.experiments) == ["mine"]


def test_without_mlflow_nothing_is_begun(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_is_installed", lambda _: False)
    complaint = "--mlflow wants mlflow, which is not installed; pip install 'folio-lm[mlflow]', or leave it out"
    check_one_line(invoke("evaluate.py", run, "--mlflow", *CPU), 2, complaint)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(trackers, "_is_installed", lambda name: name == "mlflow")
    check_one_line(invoke("evaluate.py", run, "--mlflow", *CPU), 2, "MLFLOW_TRACKING_URI names no server")
    assert not (run / "evaluations.jsonl").exists()
