"""Text from a model: control tokens by id, the prompt encoded, training undisturbed."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
import torch

from preprocess.errors import MisuseError
from preprocess.shards.format import Build
from tests.helpers.runs import AUTHOR_ID, EOT_ID, SENTENCE, TINY, VOCAB_SIZE, invoke, make_build, rows, write_config
from train.config import Config
from train.model.gpt2 import GPT2
from train.model.sampler import control_tokens, sample_text
from train.sample import show


def config_of(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y"} | TINY | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt its sentence."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(
        folder / "run.py", make_build(folder / "tiny"), max_steps=150, dropout=0.0, eval_interval=150, block_size=48
    )
    assert invoke("train.py", config).returncode == 0
    return folder / "run"


def test_control_tokens_go_in_by_id(run: Path) -> None:
    manifest = Build(run.parent / "tiny").manifest
    config = config_of(completion_author="Anna Akimova", completion_year=2025)
    assert control_tokens(manifest, config) == {"<author_Anna_Akimova>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
    with_bos = manifest | {
        "recipe": {"bos": True},
        "bos_id": 5,
        "special_tokens": {"<bos>": 5, **manifest["special_tokens"]},
    }
    assert list(control_tokens(with_bos, config)) == ["<bos>", "<author_Anna_Akimova>", "<year_2025>"]
    assert control_tokens(manifest, config_of()) == {}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"completion_author": "Anna Akimov"}, "has no author 'Anna Akimov'; did you mean 'Anna_Akimova'?"),
        ({"completion_year": 25}, "has no year 25; did you mean '2025'?"),
        ({"completion_city": "Omsk"}, "it names none; leave the city out"),
    ],
)
def test_unknown_names(run: Path, settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(MisuseError) as error:
        control_tokens(Build(run.parent / "tiny").manifest, config_of(**settings))
    assert complaint in str(error.value)


def test_text_is_continued_and_ends_where_the_document_does(run: Path) -> None:
    result = invoke(
        "sample.py", run, "--author", "Anna Akimova", "--prompt", "the quick ", "--temperature", 0, "--tokens", 60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"<author_Anna_Akimova> {SENTENCE}\n"


def test_text_that_spells_a_control_token_is_text(run: Path) -> None:
    result = invoke("sample.py", run, "--prompt", "<author_Anna_Akimova>")
    assert result.returncode == 1
    assert "'<' is not in this build's alphabet" in result.stderr


def test_without_a_prompt_it_begins_at_the_end_of_a_document(run: Path) -> None:
    assert invoke("sample.py", run, "--temperature", 0, "--tokens", 60).stdout == SENTENCE + "\n"


def test_a_checkpoint_may_be_named(run: Path) -> None:
    assert invoke("sample.py", run / "checkpoints" / "step-00000150", "--tokens", 3).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tokens", "0"], "error: --tokens is 0"),
        (["--tokens", "x"], "argument --tokens: invalid int value"),
        (["--prompt", "a\x1b"], r"error: --prompt is 'a\x1b', wanted text without control characters"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--top_p", "1.5"], "top_p is 1.5, wanted more than 0 and at most 1"),
        (["--top_p", "0"], "top_p is 0, wanted more"),
        (["--num_samples", "0"], "num_samples is 0, wanted 1 or more"),
        (["--seed", "-1"], "seed is -1, wanted 0 or more"),
        (["--device", "tpu"], "device is 'tpu', wanted auto"),
        (["--author", "Nobody"], "it names 1, such as 'Anna_Akimova'"),
    ],
)
def test_misuse(run: Path, arguments: list[str], complaint: str) -> None:
    result = invoke("sample.py", run, *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert complaint in result.stderr


def test_what_is_no_run(tmp_path: Path) -> None:
    assert "neither a checkpoint nor a run" in invoke("sample.py", tmp_path).stderr


def test_the_shards_may_have_gone(run: Path) -> None:
    build, away = run.parent / "tiny", run.parent / "away"
    build.rename(away)
    try:
        assert invoke("sample.py", run, "--temperature", 0, "--tokens", 60).stdout == SENTENCE + "\n"
    finally:
        away.rename(build)


def test_a_checkpoint_may_be_named_from_inside_its_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoints")
    assert invoke("sample.py", "step-00000150", "--tokens", 3).returncode == 0
    monkeypatch.chdir("step-00000150")
    assert invoke("sample.py", ".", "--tokens", 3).returncode == 0


def test_a_checkpoint_outside_its_run_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "checkpoint"
    shutil.copytree(run / "checkpoints" / "step-00000150", alone)
    result = invoke("sample.py", alone)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'build' / 'manifest.json'} is missing" in result.stderr
    shutil.copytree(run / "build", tmp_path / "build")
    assert invoke("sample.py", alone, "--tokens", 3).returncode == 0


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_changed_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    alphabet = copy / "build" / "tokenizer" / "alphabet.txt"
    alphabet.write_text(alphabet.read_text()[::-1])
    result = invoke("sample.py", copy)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert f"{alphabet} is not the file its manifest vouches for" in result.stderr


def test_another_tokenizer_than_the_models_is_refused(run: Path, tmp_path: Path) -> None:
    copy, other = (
        copy_of(run, tmp_path),
        make_build(tmp_path / "other", tokenizer={"kind": "byte", "files": {}, "settings": {}}),
    )
    shutil.copy(other / "manifest.json", copy / "build" / "manifest.json")
    result = invoke("sample.py", copy)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "is of another tokenizer than" in result.stderr


def test_the_best_checkpoint_or_the_newest(tmp_path: Path) -> None:
    """A run that learns, then forgets: its steps grow ruinous after a warm-up that was gentle."""
    build = make_build(tmp_path / "tiny")
    config = write_config(
        tmp_path / "run.py", build, dropout=0.0, max_steps=60, warmup_steps=60, learning_rate=0.8, min_lr=0.8, eval_interval=10,
        checkpoint_interval=10, keep_checkpoints=1, grad_clip=None,
    )  # fmt: skip
    assert invoke("train.py", config).returncode == 0
    evaluated = {row["step"]: row["val_loss"] for row in rows(tmp_path / "run") if "val_loss" in row}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert 0 < best < 60
    folder = tmp_path / "run" / "checkpoints"
    by_step = {step: invoke("sample.py", folder / f"step-{step:08d}", "--tokens", 60).stdout for step in (best, 60)}
    assert by_step[best] != by_step[60]
    assert invoke("sample.py", tmp_path / "run", "--tokens", 60).stdout == by_step[60]
    assert invoke("sample.py", tmp_path / "run", "--tokens", 60, "--best").stdout == by_step[best]


def test_several_samples_are_told_apart_and_the_first_is_the_one(run: Path) -> None:
    hot = ["--temperature", 3, "--tokens", 12, "--prompt", "fox"]
    one, three = invoke("sample.py", run, *hot).stdout, invoke("sample.py", run, *hot, "--num_samples", 3).stdout
    parts = re.fullmatch(
        r"--- sample 1 of 3 ---\n(.*)\n--- sample 2 of 3 ---\n(.*)\n--- sample 3 of 3 ---\n(.*)", three, re.DOTALL
    )
    assert parts and parts[1] == one
    assert len(set(parts.groups())) == 3 and all(text.startswith("fox") for text in parts.groups())
    assert invoke("sample.py", run, *hot, "--num_samples", 3).stdout == three
    assert invoke("sample.py", run, *hot, "--seed", 2).stdout != one


def test_top_p_narrows_to_the_likeliest(run: Path) -> None:
    greedy = invoke("sample.py", run, "--tokens", 40, "--temperature", 0).stdout
    assert invoke("sample.py", run, "--tokens", 40, "--temperature", 1, "--top_p", 1e-6).stdout == greedy


def test_text_is_printed_as_it_comes_and_obeyed_by_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    class Terminal(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr("sys.stdout", Terminal())
    show(iter(["fox", "\x1b[31m", "es"]))
    assert flushed == ["fox", "fox\\x1b[31m", "fox\\x1b[31mes", "fox\\x1b[31mes\n"]


def test_training_randomness_and_mode_are_left_alone(run: Path) -> None:
    build, model = Build(run.parent / "tiny"), GPT2(config_of(), VOCAB_SIZE)
    before = torch.get_rng_state()
    first = sample_text(model, build.folder, build.manifest, config=config_of(temperature=2.0))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert sample_text(model, build.folder, build.manifest, config=config_of(temperature=2.0)) == first


def test_control_ids_that_a_model_draws_are_silent(run: Path) -> None:
    model = GPT2(config_of(), VOCAB_SIZE)
    with torch.no_grad():  # draws the author's id and nothing else
        model.ln_f.bias.copy_(100 * model.wte.weight[AUTHOR_ID])
    assert EOT_ID != AUTHOR_ID
    folder, config = run.parent / "tiny", config_of(temperature=0.0, completion_prompt="fox")
    assert sample_text(model, folder, Build(folder).manifest, config=config) == "fox"


def test_ids_that_this_build_does_not_know_are_silent(run: Path) -> None:
    """A model that was trained on a build of more authors goes on with one of fewer."""
    model = GPT2(config_of(), VOCAB_SIZE + 5)
    with torch.no_grad():
        model.ln_f.bias.copy_(100 * model.wte.weight[VOCAB_SIZE + 4])
    folder, config = run.parent / "tiny", config_of(temperature=0.0, completion_prompt="fox")
    assert sample_text(model, folder, Build(folder).manifest, config=config) == "fox"
