"""sample.py: completions of a prompt, its options, and runs that cannot be sampled."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.runs import EOT_ID, SENTENCE, invoke, make_build, read_val_losses, train_run, write_config
from train.model.sampler import RUN_COPY_ADVICE
from train.sample import show


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run that has learned its sentence."""
    return train_run(folder, "run", max_steps=150, dropout=0.0, eval_interval=150, block_size=48)


def test_completion_continues_the_prompt_and_ends_with_the_document(run: Path) -> None:
    result = invoke(
        "sample.py", run, "--author", "Anna Akimova", "--prompt", "the quick ", "--temperature", 0, "--tokens", 60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"<author_Anna_Akimova> {SENTENCE}\n"


def test_text_of_a_control_token_in_the_prompt_is_ordinary_text(run: Path) -> None:
    result = invoke("sample.py", run, "--prompt", "<author_Anna_Akimova>")
    assert result.returncode == 2
    assert "the prompt '<author_Anna_Akimova>' cannot be encoded: the character '<' is not in the" in result.stderr


def test_empty_prompt_starts_a_new_document(run: Path) -> None:
    assert invoke("sample.py", run, "--temperature", 0, "--tokens", 60).stdout == SENTENCE + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "error: --tokens must be at least 1, got 0"),
        (["--tokens", "x"], "error: --tokens must be a whole number, got 'x'"),
        (["--prompt", "a\x1b"], r"error: --prompt must be UTF-8 text without control characters, got 'a\x1b'"),
        (["--temperature", "-1"], "temperature must be at least 0, got -1.0"),
        (["--top_p", "1.5"], "top_p must be > 0 and at most 1, got 1.5"),
        (["--top_p", "0"], "top_p must be > 0, got 0"),
        (["--temperature", "0", "--top_k", "5"], "--top_k has no effect because temperature is 0"),
        (["--temperature", "0", "--seed", "5"], "--seed has no effect because temperature is 0"),
        (["--temperature", "1e400"], "--temperature must be at most 1e+18, got inf"),
        (["--top_k", "9" * 5000], "--top_k must be a whole number, got '999"),
        (["--tokens", "9" * 70], "--tokens must be at most 1,000,000, got 999"),
        (["--num_completions", "0"], "--num_completions must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--device", "tpu"], "device must be auto, cpu, mps, cuda or cuda:N such as cuda:1, got 'tpu'"),
        (["--author", "Nobody"], "it has 1 of them, such as 'Anna_Akimova'"),
    ],
)
def test_invalid_option_is_one_line(run: Path, arguments: list[str], message: str) -> None:
    result = invoke("sample.py", run, *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr


def test_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    result = invoke("sample.py", tmp_path)
    assert result.returncode == 2 and "neither a checkpoint nor a run" in result.stderr
    assert "RUN is empty; name a file or a folder" in invoke("sample.py", "").stderr


# Where the checkpoint and the tokenizer come from


def test_checkpoint_can_be_named(run: Path) -> None:
    assert invoke("sample.py", run / "checkpoints" / "step-00000150", "--tokens", 3).returncode == 0


def test_checkpoint_can_be_named_from_inside_its_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoints")
    assert invoke("sample.py", "step-00000150", "--tokens", 3).returncode == 0
    monkeypatch.chdir("step-00000150")
    assert invoke("sample.py", ".", "--tokens", 3).returncode == 0


def test_shards_are_not_needed(run: Path) -> None:
    build, away = run.parent / "tiny", run.parent / "away"
    build.rename(away)
    try:
        assert invoke("sample.py", run, "--temperature", 0, "--tokens", 60).stdout == SENTENCE + "\n"
    finally:
        away.rename(build)


def test_checkpoint_outside_its_run_needs_the_folder_build(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "checkpoint"
    shutil.copytree(run / "checkpoints" / "step-00000150", alone)
    result = invoke("sample.py", alone)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'build' / 'manifest.json'} is missing" in result.stderr
    shutil.copytree(run / "build", tmp_path / "build")
    assert invoke("sample.py", alone, "--tokens", 3).returncode == 0


def copy_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_changed_tokenizer_file_is_an_error(run: Path, tmp_path: Path) -> None:
    copy = copy_run(run, tmp_path)
    alphabet = copy / "build" / "tokenizer" / "alphabet.txt"
    alphabet.write_text(alphabet.read_text()[::-1])
    result = invoke("sample.py", copy)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"{alphabet} does not have the sha256 in its manifest; {RUN_COPY_ADVICE}" in result.stderr


def test_changed_manifest_of_a_run_is_an_error(run: Path, tmp_path: Path) -> None:
    copy = copy_run(run, tmp_path)
    manifest = copy / "build" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"eot_id": %d' % EOT_ID, b'"eot_id": 5'))
    result = invoke("sample.py", copy)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"{manifest} does not match its checksum: it was damaged or edited; {RUN_COPY_ADVICE}" in result.stderr


def test_tokenizer_of_another_model_is_an_error(run: Path, tmp_path: Path) -> None:
    copy = copy_run(run, tmp_path)
    other = make_build(tmp_path / "other", tokenizer={"kind": "byte", "files": {}, "settings": {}})
    shutil.copy(other / "manifest.json", copy / "build" / "manifest.json")
    result = invoke("sample.py", copy)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"{copy / 'build'} has another tokenizer than " in result.stderr


def test_best_selects_the_checkpoint_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    """The learning rate rises until the end, so the model learns and then forgets."""
    build = make_build(tmp_path / "tiny")
    config = write_config(
        tmp_path / "run.py", build, dropout=0.0, max_steps=60, warmup_steps=60, learning_rate=0.8, min_lr=0.8,
        eval_interval=10, checkpoint_interval=10, keep_checkpoints=1, grad_clip=None,
    )  # fmt: skip
    assert invoke("train.py", config).returncode == 0
    val_losses = read_val_losses(tmp_path / "run")
    best = min(val_losses, key=lambda step: val_losses[step])
    assert 0 < best < 60
    folder = tmp_path / "run" / "checkpoints"
    by_step = {step: invoke("sample.py", folder / f"step-{step:08d}", "--tokens", 60).stdout for step in (best, 60)}
    assert by_step[best] != by_step[60]
    assert invoke("sample.py", tmp_path / "run", "--tokens", 60).stdout == by_step[60]
    assert invoke("sample.py", tmp_path / "run", "--tokens", 60, "--best").stdout == by_step[best]
    checkpoint = invoke("sample.py", folder / f"step-{best:08d}", "--best")
    assert checkpoint.returncode == 2 and "--best chooses among those of a run" in checkpoint.stderr


# Several completions, and how they are printed


def test_several_completions_have_headings_and_the_first_equals_a_single_one(run: Path) -> None:
    options = ["--temperature", 3, "--tokens", 12, "--prompt", "fox"]
    one = invoke("sample.py", run, *options).stdout
    three = invoke("sample.py", run, *options, "--num_completions", 3).stdout
    parts = re.fullmatch(
        r"--- completion 1 of 3 ---\n(.*)\n--- completion 2 of 3 ---\n(.*)\n--- completion 3 of 3 ---\n(.*)",
        three,
        re.DOTALL,
    )
    assert parts and parts[1] == one
    assert len(set(parts.groups())) == 3 and all(text.startswith("fox") for text in parts.groups())
    assert invoke("sample.py", run, *options, "--num_completions", 3).stdout == three
    assert invoke("sample.py", run, *options, "--seed", 2).stdout != one
    assert invoke("sample.py", run, *options, "--num_completions", 3, "--quiet").stdout == "".join(
        text.removesuffix("\n") + "\n" for text in parts.groups()
    )


def test_small_top_p_takes_the_most_likely_ids(run: Path) -> None:
    greedy = invoke("sample.py", run, "--tokens", 40, "--temperature", 0).stdout
    assert invoke("sample.py", run, "--tokens", 40, "--temperature", 1, "--top_p", 1e-6).stdout == greedy


def test_show_prints_each_part_at_once_and_escapes_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    class Terminal(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr("sys.stdout", Terminal())
    show(iter(["fox", "\x1b[31m", "es"]))
    assert flushed == ["fox", "fox\\x1b[31m", "fox\\x1b[31mes", "fox\\x1b[31mes\n"]
