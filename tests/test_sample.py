"""Text from a model: control tokens by id, the prompt encoded, training undisturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from config import Config
from model import GPT
from preprocess.errors import MisuseError
from preprocess.shards.format import Build
from sample import control_tokens, sample_text
from train_helpers import AUTHOR_ID, EOT_ID, SENTENCE, TINY, VOCAB_SIZE, invoke, make_build, write_config


def config_of(**settings: object) -> Config:
    return Config(**({"data": "x", "out_dir": "y"} | TINY | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt its sentence."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder / "run.py", make_build(folder / "tiny"), max_steps=150, dropout=0.0, eval_interval=150, block_size=48)
    assert invoke("train.py", config).returncode == 0
    return folder / "run"


def test_control_tokens_go_in_by_id(run: Path) -> None:
    manifest = Build(run.parent / "tiny").manifest
    config = config_of(sample_author="Anna Akimova", sample_year=2025)
    assert control_tokens(manifest, config) == {"<author_Anna_Akimova>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
    with_bos = manifest | {"recipe": {"bos": True}, "bos_id": 5, "special_tokens": {"<bos>": 5, **manifest["special_tokens"]}}
    assert list(control_tokens(with_bos, config)) == ["<bos>", "<author_Anna_Akimova>", "<year_2025>"]
    assert control_tokens(manifest, config_of()) == {}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sample_author": "Anna Akimov"}, "has no author 'Anna Akimov'; did you mean 'Anna_Akimova'?"),
        ({"sample_year": 25}, "has no year 25; did you mean '2025'?"),
        ({"sample_city": "Omsk"}, "it names none; leave the city out"),
    ],
)
def test_unknown_names(run: Path, settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(MisuseError) as error:
        control_tokens(Build(run.parent / "tiny").manifest, config_of(**settings))
    assert complaint in str(error.value)


def test_text_is_continued_and_ends_where_the_document_does(run: Path) -> None:
    result = invoke("sample.py", run, "--author", "Anna Akimova", "--prompt", "the quick ", "--temperature", 0, "--tokens", 60)
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
        (["--tokens", "0"], "sample_tokens is 0"),
        (["--tokens", "x"], "argument --tokens: invalid int value"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--device", "tpu"], "device is 'tpu', wanted auto"),
        (["--author", "Nobody"], "did you mean 'Anna_Akimova'?"),
    ],
)
def test_misuse(run: Path, arguments: list[str], complaint: str) -> None:
    result = invoke("sample.py", run, *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert complaint in result.stderr


def test_no_run_and_another_build(run: Path, tmp_path: Path) -> None:
    assert "neither a checkpoint nor a run" in invoke("sample.py", tmp_path).stderr
    config = write_config(tmp_path / "run.py", make_build(tmp_path / "tiny"), max_steps=6)
    assert invoke("train.py", config).returncode == 0
    (tmp_path / "tiny").rename(tmp_path / "old")
    make_build(tmp_path / "tiny", train_repeats=50)
    result = invoke("sample.py", tmp_path / "run")
    assert result.returncode == 2
    assert "another build" in result.stderr


def test_training_randomness_and_mode_are_left_alone(run: Path) -> None:
    build, model = Build(run.parent / "tiny"), GPT(config_of(), VOCAB_SIZE)
    before = torch.get_rng_state()
    first = sample_text(model, build, config=config_of(temperature=2.0))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert sample_text(model, build, config=config_of(temperature=2.0)) == first


def test_control_ids_that_a_model_draws_are_silent(run: Path) -> None:
    model = GPT(config_of(), VOCAB_SIZE)
    with torch.no_grad():  # draws the author's id and nothing else
        model.ln_f.bias.copy_(100 * model.wte.weight[AUTHOR_ID])
    assert EOT_ID != AUTHOR_ID
    assert sample_text(model, Build(run.parent / "tiny"), config=config_of(temperature=0.0, sample_prompt="fox")) == "fox"
