"""The prompts of an evaluation, and their completions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.errors import MisuseError
from preprocess.shards.replaced import ReplacedError
from tests.helpers.manifests import EMPTY_SPLIT, make_manifest
from tests.helpers.runs import SENTENCE, invoke, make_build, write_config
from tests.train.evaluation.helpers import CPU, check_error, read_rows, snapshot
from train.data.builds import open_builds
from train.evaluation import job
from train.evaluation.prompts import MAX_PROMPTS, draw_prompts, read_prompts


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    """A run that has learnt the sentence of its build."""
    config = write_config(
        folder / "learned.py", folder / "tiny", max_steps=150, dropout=0.0, eval_interval=150, block_size=48
    )
    assert invoke("train.py", config).returncode == 0
    return folder / "learned"


def test_completions_equal_those_of_sample(learned: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffthe quick \r\n\nlazy\n".encode())
    result = invoke("evaluate.py", learned, "--prompts", file, "--tokens", 60, *CPU)
    assert (result.returncode, result.stderr) == (0, "")
    completions = read_rows(learned)[-1]["completions"]
    assert [each["prompt"] for each in completions] == ["the quick ", "lazy"]
    assert completions[0]["completion"] == SENTENCE.removeprefix("the quick ")
    for each in completions:
        sampled = invoke(
            "sample.py", learned, "--prompt", each["prompt"], "--temperature", 0, "--tokens", 60, *CPU
        ).stdout
        assert sampled == each["prompt"] + each["completion"] + "\n"
        assert f": {each['prompt']}\n" in result.stdout and each["completion"] in result.stdout
    json_file = tmp_path / "again.jsonl"
    json_file.write_text('{"prompt": "the quick ", "other": 1}\n{"prompt": "lazy"}\n')
    before = snapshot(learned)
    assert "nothing was left" in invoke("evaluate.py", learned, "--prompts", json_file, "--tokens", 60, *CPU).stdout
    assert snapshot(learned) == before, "the same prompts in another format"


def test_other_prompts_or_settings_reuse_the_losses(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    monkeypatch.setattr(job, "evaluate", lambda *_, **__: pytest.fail("the losses are known"))
    for extra in (
        ["--prompts", 2],
        ["--prompts", 3],
        ["--prompts", 3, "--tokens", 5],
        ["--prompts", 3, "--temperature", 1],
    ):
        assert invoke("evaluate.py", run, *extra, *CPU).returncode == 0
    found = read_rows(run)
    assert len({row["key"] for row in found}) == 5 and len({row["val_loss"] for row in found}) == 1
    assert [len(row["completions"]) for row in found] == [0, 2, 3, 3, 3]
    assert len(list((run / "evaluations").glob("*.safetensors"))) == 1


def test_second_call_prints_the_stored_completions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = invoke("evaluate.py", run, "--prompts", 2, *CPU)
    monkeypatch.setattr(job, "generate", lambda *_, **__: pytest.fail("the completions are known"))
    second = invoke("evaluate.py", run, "--prompts", 2, *CPU)
    assert "\ncompletion 2: " in first.stdout and second.returncode == 0
    loss, *completions, note = second.stdout.splitlines()
    assert [loss.removesuffix("  (evaluated before)"), *completions] == first.stdout.splitlines()
    assert note == "nothing was left to evaluate"


@pytest.fixture
def moved(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run `one`, whose build was deleted."""
    build = make_build(tmp_path / "tiny")
    assert invoke("train.py", write_config(tmp_path / "moved.py", build)).returncode == 0
    (tmp_path / "prompts.txt").write_text("the quick\n")
    return tmp_path / "moved"


def test_prompts_are_completed_without_the_data(moved: Path) -> None:
    prompts = ("--prompts", moved.parent / "prompts.txt", *CPU)
    shutil.rmtree(moved.parent / "tiny")
    result = invoke("evaluate.py", moved, *prompts)
    assert result.returncode == 0 and result.stdout.startswith("prompt 1: the quick\ncompletion 1: ")
    assert result.stderr.startswith("warning: no build ") and result.stderr.count("\n") == 1
    assert "the prompts are completed without computing a loss, and nothing is stored" in result.stderr
    row = json.loads(invoke("evaluate.py", moved, "--json", *prompts).stdout)
    assert (row["val_loss"], row["num_windows"], len(row["completions"])) == (None, 0, 1)
    assert not (moved / "evaluations.jsonl").exists()
    for arguments in (
        (),
        ("--prompts", 1),
        ("--data", moved.parent / "tiny", "--prompts", moved.parent / "prompts.txt"),
    ):
        check_error(invoke("evaluate.py", moved, *arguments, *CPU), 2, "no build")


def test_known_losses_need_no_data(moved: Path) -> None:
    first = invoke("evaluate.py", moved, *CPU)
    shutil.rmtree(moved.parent / "tiny")
    again = invoke("evaluate.py", moved, *CPU)
    assert (again.returncode, again.stderr) == (0, "") and again.stdout.startswith(first.stdout.rstrip("\n"))
    result = invoke("evaluate.py", moved, "--prompts", moved.parent / "prompts.txt", *CPU)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.startswith(first.stdout)
    loss, completed = read_rows(moved)
    assert len(completed["completions"]) == 1 and completed["key"] != loss["key"]
    timing = ("key", "completions", "elapsed_s")
    assert {k: v for k, v in completed.items() if k not in timing} == {k: v for k, v in loss.items() if k not in timing}


def test_prompts_of_a_stream_run_read_the_stream_once(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("".join(f"{n} {SENTENCE}" for n in range(100)))
    recipe = 'inputs = ["input.txt"]\ndocument = "line"\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\n'
    (tmp_path / "mine.toml").write_text(recipe + "val_fraction = 0.2\n")
    data = f"stream:{tmp_path / 'mine.toml'}"
    config = write_config(tmp_path / "run.py", tmp_path, data=data, eval_tokens=256, max_steps=2, warmup_steps=1)
    assert invoke("train.py", config).returncode == 0
    (tmp_path / "prompts.txt").write_text("the quick\n")
    prompts = (tmp_path / "run", "--prompts", tmp_path / "prompts.txt", *CPU)
    assert "reading all of stream:mine for its validation text" in invoke("evaluate.py", *prompts).stdout
    assert "reading all" not in invoke("evaluate.py", *prompts).stdout
    (tmp_path / "input.txt").write_text("".join(f"{n} {SENTENCE.swapcase()}" for n in range(100)))  # of the same size
    os.utime(tmp_path / "input.txt", ns=(0, 0))
    assert "reading all of stream:mine" in invoke("evaluate.py", *prompts).stdout
    first, second = read_rows(tmp_path / "run")
    assert first["val_loss"] != second["val_loss"] and first["build_id"] == second["build_id"]
    (tmp_path / "input.txt").unlink()
    result = invoke("evaluate.py", *prompts, "--tokens", 3)
    assert (result.returncode, result.stderr) == (0, "") and "reading all" not in result.stdout
    assert "\ncompletion 1: " in result.stdout and len(read_rows(tmp_path / "run")) == 3
    assert read_rows(tmp_path / "run")[-1]["val_loss"] == second["val_loss"]


def test_loss_is_printed_and_saved_before_prompts_are_completed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "generate", interrupt)
    result = invoke("evaluate.py", run, "--prompts", 1, *CPU)
    assert (
        result.returncode == 130 and result.stdout.startswith("step 24  val loss ") and result.stdout.count("\n") == 1
    )
    assert not (run / "evaluations.jsonl").exists()
    monkeypatch.undo()
    monkeypatch.setattr(job, "evaluate", lambda *_, **__: pytest.fail("the losses are known"))
    again = invoke("evaluate.py", run, "--prompts", 1, *CPU)
    assert again.stdout.startswith(result.stdout) and len(read_rows(run)[0]["completions"]) == 1


def test_number_of_prompts_takes_beginnings_of_validation_documents(learned: Path) -> None:
    assert invoke("evaluate.py", learned, "--prompts", 6, "--tokens", 60, *CPU).returncode == 0
    for each in read_rows(learned)[-1]["completions"]:
        assert each["prompt"] == "<author_Anna_Akimova> " + SENTENCE[:16] and each["completion"] == SENTENCE[16:]


def test_draw_prompts_gives_fewer_as_the_first_of_more(folder: Path) -> None:
    class ShowIds:
        def decode(self, ids: np.ndarray) -> str:
            return str(ids.tolist())

    class Documents:
        def __init__(self) -> None:
            special_tokens = {"<a>": 1, "<b>": 2, "<end>": 3}
            splits = {"val": dataclasses.replace(EMPTY_SPLIT, documents=1000)}
            self.manifest = make_manifest(splits=splits, special_tokens=special_tokens, eot_id=3)

        reading = contextlib.nullcontext

        def document(self, _: str, number: int) -> np.ndarray:
            return np.array([1, 2, *[10 + number] * (number % 50), 3])

    builds: Any = types.SimpleNamespace(builds=[Documents(), Documents()], manifest=Documents().manifest)
    ten, thousands = (draw_prompts(builds, count, ShowIds()) for count in (10, 2000))
    assert thousands[:10] == ten and len({tuple(prompt.ids) for prompt in ten}) == 10
    for prompt in thousands:
        text = prompt.ids[2:]
        assert prompt.ids[:2] == [1, 2] and 3 not in prompt.ids and prompt.text == f"<a> <b> {text}"
        assert len(text) == (max(1, min(16, (text[0] - 10) % 50 // 2)) if text else 0)


def test_draw_prompts_rejects_a_build_that_was_replaced(tmp_path: Path) -> None:
    build = make_build(tmp_path / "data")
    source = open_builds(str(build))
    shutil.rmtree(build)
    make_build(build, val_repeats=7)
    with pytest.raises(ReplacedError, match="was replaced or deleted while it was read"):
        draw_prompts(source, 2, tokenizer=None)


def test_long_prompt_is_cut_to_its_end(learned: Path, tmp_path: Path) -> None:
    prompt = (SENTENCE.strip() + " ") * 1000
    (tmp_path / "long.txt").write_text(prompt + "\n" + prompt[-48:] + "\n")
    result = invoke("evaluate.py", learned, "--prompts", tmp_path / "long.txt", "--tokens", 20, *CPU)
    assert result.returncode == 0 and len(result.stdout) < 1000
    long, short = read_rows(learned)[-1]["completions"]
    assert (long["prompt"], short["prompt"]) == ("…" + prompt[-48:], prompt[-48:]) and long["completion"] == short[
        "completion"
    ]
    sampled = invoke("sample.py", learned, "--prompt", prompt, "--temperature", 0, "--tokens", 20, *CPU).stdout
    assert sampled.rstrip("\n") == (prompt + long["completion"]).rstrip("\n")


def test_prompt_without_ids_starts_at_the_end_of_a_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = types.SimpleNamespace(
        encode_text=lambda _: np.zeros(0, np.uint32), decode_bytes=lambda ids: b"x" * len(ids)
    )
    monkeypatch.setattr(job, "load_text_tokenizer", lambda *_: tokenizer)
    (run / "p.jsonl").write_text('{"prompt": " "}\n')
    result = invoke("evaluate.py", run, "--prompts", run / "p.jsonl", "--tokens", 3, *CPU)
    assert (result.returncode, result.stderr, len(read_rows(run)[-1]["completions"])) == (0, "", 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "has no prompts"),
        ("p.txt", b"\n \n", "has no prompts"),
        ("p.txt", b"\xff", "is not UTF-8"),
        ("p.txt", "Ж\n".encode(), "is not in the alphabet of this tokenizer"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}\n',
            'line 2 is {"text": "b"}, expected an object with a text as "prompt"',
        ),
        ("p.jsonl", b'{"prompt": 1}\n', 'expected an object with a text as "prompt"'),
        ("p.jsonl", b'{"prompt": ""}\n', 'expected an object with a text as "prompt"'),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', 'expected an object with a text as "prompt"'),
        ("p.jsonl", b"[" * 100_000 + b"\n", 'expected an object with a text as "prompt"'),
        ("p.jsonl", b"text\n", 'expected an object with a text as "prompt"'),
        ("p.jsonl", b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}\n", 'expected an object with a text as "prompt"'),
        ("p.jsonl", b'{"prompt": "a", "n": NaN}\n', 'expected an object with a text as "prompt"'),
        ("p.txt", b"a\n" * (8 << 20) + b"b", "has 16,777,217 bytes, expected at most 16,777,216"),
    ],
)
def test_bad_files_of_prompts_are_rejected(run: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    result = invoke("evaluate.py", run, "--prompts", tmp_path / name, *CPU)
    check_error(result, result.returncode, message)
    assert "Error)" not in result.stderr
    assert result.returncode == 2 and len(result.stderr) < 600 and not (run / "evaluations.jsonl").exists()


def test_named_pipe_of_prompts_is_rejected_at_once(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_error(invoke("evaluate.py", run, "--prompts", tmp_path / "pipe", *CPU), 2, "pipe is not a regular file")


def test_too_many_prompts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\n" * MAX_PROMPTS)
    assert len(read_prompts(path)) == MAX_PROMPTS
    path.write_text("a\n" * (MAX_PROMPTS + 1))
    with pytest.raises(MisuseError, match="has 100,001 prompts, expected at most 100,000; divide the file"):
        read_prompts(path)
