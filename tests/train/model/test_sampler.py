"""Prompts and completions: control tokens by id, and text without them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from preprocess.errors import MisuseError
from preprocess.shards.format import Build
from tests.helpers.runs import AUTHOR_ID, EOT_ID, VOCAB_SIZE, make_build, make_config
from train.model.gpt2 import GPT2
from train.model.sampler import complete, control_tokens


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return Build(str(make_build(tmp_path_factory.mktemp("sampler") / "tiny")))


def make_model_that_draws(i: int, *, vocab_size: int = VOCAB_SIZE) -> GPT2:
    """Return a model whose most likely id is always `i`."""
    model = GPT2(make_config(), vocab_size)
    with torch.no_grad():
        model.ln_f.bias.copy_(100 * model.wte.weight[i])
    return model


def test_control_tokens_are_bos_author_and_year(build: Build) -> None:
    manifest = build.manifest
    config = make_config(completion_author="Anna Akimova", completion_year=2025)
    assert control_tokens(manifest, config) == {"<author_Anna_Akimova>": AUTHOR_ID, "<year_2025>": AUTHOR_ID + 1}
    special_tokens = {"<bos>": 5, **manifest.special_tokens}
    with_bos = dataclasses.replace(manifest, recipe={"bos": True}, bos_id=5, special_tokens=special_tokens)
    assert list(control_tokens(with_bos, config)) == ["<bos>", "<author_Anna_Akimova>", "<year_2025>"]
    assert control_tokens(manifest, make_config()) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"completion_author": "Anna Akimov"}, "has no author 'Anna Akimov'; did you mean 'Anna_Akimova'?"),
        ({"completion_year": 25}, "has no year 25; did you mean '2025'?"),
        ({"completion_city": "Omsk"}, "the build has no city tokens; leave the city out"),
    ],
)
def test_control_tokens_rejects_unknown_names(build: Build, settings: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError) as error:
        control_tokens(build.manifest, make_config(**settings))
    assert message in str(error.value)


def test_complete_draws_no_global_random_number_and_restores_the_mode(build: Build) -> None:
    model, config = GPT2(make_config(), VOCAB_SIZE), make_config(temperature=2.0)
    before = torch.get_rng_state()
    first = complete(model, build.folder, build.manifest, config=config)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert complete(model, build.folder, build.manifest, config=config) == first


def test_drawn_control_ids_have_no_text(build: Build) -> None:
    model = make_model_that_draws(AUTHOR_ID)
    assert EOT_ID != AUTHOR_ID
    config = make_config(temperature=0.0, completion_prompt="fox")
    assert complete(model, build.folder, build.manifest, config=config) == "fox"


def test_ids_beyond_the_vocabulary_of_the_build_have_no_text(build: Build) -> None:
    """A model that was trained on a build with more authors continues on one with fewer."""
    model = make_model_that_draws(VOCAB_SIZE + 4, vocab_size=VOCAB_SIZE + 5)
    config = make_config(temperature=0.0, completion_prompt="fox")
    assert complete(model, build.folder, build.manifest, config=config) == "fox"
