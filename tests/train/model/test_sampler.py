"""Prompts and completions: control tokens by id, and text without them."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from preprocess.errors import MisuseError
from preprocess.shards.format import Build
from tests.conftest import assert_one_line
from tests.helpers.runs import AUTHOR_ID, EOT_ID, VOCAB_SIZE, encode, make_build, make_config
from train.model.generate import generate
from train.model.gpt2 import GPT2
from train.model.sampler import complete, control_tokens, encode_text, load_text_tokenizer


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
        ({"completion_year": 25}, "has no year 25; its nearest year is 2025"),
        ({"completion_city": "Omsk"}, "the build has no city tokens; leave the city out"),
        ({"completion_author": "x" * 9000}, "has no author 'xxx"),
        ({"completion_year": 10**17}, "has no year 100000000000000000; its nearest year is 2025"),
    ],
)
def test_control_tokens_rejects_unknown_names(build: Build, settings: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError) as error:
        control_tokens(build.manifest, make_config(**settings))
    assert message in str(error.value)
    assert_one_line(str(error.value))


AUTHORS = [
    "William_Shakespeare",
    "Anna_Akhmatova",
    "Анна_Керн",
    "Anna_Akimova",
    "John_Ann",
    "William_Blake",
    "St._John",
]
YEARS = [1590, 1601, 1623]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"completion_author": "Shakespeare"}, "did you mean 'William_Shakespeare'?"),
        ({"completion_author": "william shakespeare"}, "did you mean 'William_Shakespeare'?"),
        ({"completion_author": "Wiliam Shakspeare"}, "did you mean 'William_Shakespeare'?"),
        ({"completion_author": "WILLIAM"}, "did you mean 'William_Blake' or 'William_Shakespeare'?"),
        ({"completion_author": "John"}, "did you mean 'St._John' or 'John_Ann'?"),
        ({"completion_author": "керн"}, "did you mean 'Анна_Керн'?"),
        (
            {"completion_author": "Nobody"},
            "it has 7 of them, such as 'William_Shakespeare', 'Anna_Akhmatova', 'Анна_Керн'",
        ),
        ({"completion_author": "author"}, "it has 7 of them, such as"),
        ({"completion_author": ""}, "it has 7 of them, such as"),
        ({"completion_year": 1610}, "its nearest year is 1601"),
        ({"completion_year": 3000}, "its nearest year is 1623"),
    ],
)
def test_suggested_names_are_similar(build: Build, settings: dict[str, object], advice: str) -> None:
    tokens = [*(f"<author_{name}>" for name in AUTHORS), *(f"<year_{year}>" for year in YEARS)]
    manifest = dataclasses.replace(build.manifest, special_tokens={token: i for i, token in enumerate(tokens)})
    with pytest.raises(MisuseError) as error:
        control_tokens(manifest, make_config(**settings))
    assert str(error.value).partition("; ")[2].startswith(advice), str(error.value)


def test_name_among_many_authors_is_suggested_at_once(build: Build) -> None:
    tokens = {f"<author_{'Anna' if i % 2 else 'Boris'}_{i:x}{'y' * (i % 40)}>": i for i in range(100_000)}
    manifest = dataclasses.replace(build.manifest, special_tokens=tokens | {"<author_Anna_Akhmatova>": 100_000})
    began = time.process_time()
    for name in ("Anna_Achmatova", "Akhmatova"):
        with pytest.raises(MisuseError, match="did you mean 'Anna_Akhmatova'"):
            control_tokens(manifest, make_config(completion_author=name))
    with pytest.raises(MisuseError, match="did you mean|it has 100,001 of them") as error:
        control_tokens(manifest, make_config(completion_author="Anna"))
    assert_one_line(str(error.value))
    assert time.process_time() - began < 10


def test_encode_text_names_the_prompt_that_cannot_be_encoded(build: Build) -> None:
    tokenizer = load_text_tokenizer(build.folder, build.manifest)
    assert encode_text(tokenizer, "fox", "the prompt") == encode("fox").tolist()
    with pytest.raises(MisuseError) as error:
        encode_text(tokenizer, "fox " * 1000 + "\u0416", "the prompt")
    assert str(error.value).startswith("the prompt 'fox fox ") and "character 'Ж' is not in the" in str(error.value)
    assert_one_line(str(error.value))


def test_complete_draws_no_global_random_number_and_restores_the_mode(build: Build) -> None:
    model, config = GPT2(make_config(), VOCAB_SIZE), make_config(temperature=2.0)
    before = torch.get_rng_state()
    first = complete(model, build.folder, build.manifest, config=config)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert complete(model, build.folder, build.manifest, config=config) == first


@pytest.mark.parametrize("mask_documents", [False, True])
def test_document_is_not_continued_from_the_end_of_the_one_before(build: Build, mask_documents: bool) -> None:
    config = make_config(mask_documents=mask_documents, temperature=0.0, completion_tokens=12, block_size=32)
    torch.manual_seed(1)
    model = GPT2(config, VOCAB_SIZE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    first, *_ = generate(model, [EOT_ID], config=config, eot_id=None)
    prompt = [first] if mask_documents else [EOT_ID, first]
    rest = dataclasses.replace(config, completion_tokens=11)
    expected = [first, *generate(model, prompt, config=rest, eot_id=EOT_ID)]
    tokenizer = load_text_tokenizer(build.folder, build.manifest)
    text = tokenizer.decode(np.array([i for i in expected if i < EOT_ID], np.uint32))
    assert complete(model, build.folder, build.manifest, config=config) == text and len(text) > 3


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
