"""The tokenizer of a recipe: end-of-text tokens that it lacks, and added tokens that are not used."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from preprocess.recipes.schema import Recipe
from preprocess.tokenizers.for_recipe import LoadedTokenizer, load_recipe_tokenizer
from tests.preprocess.tokenizers.helpers import ADDED_TOKEN, make_word_file
from tests.preprocess.tokenizers.json_makers import TRAINING_TEXT

WITHOUT_END = make_word_file("abc ", end=None)


def load(tmp_path: Path, data: bytes, **settings: str) -> LoadedTokenizer:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    return load_recipe_tokenizer(Recipe(corpus="x", tokenizer=str(path), **settings))


def test_missing_end_of_text_token_is_an_error_only_if_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="eot is 'append', but the tokenizer .* has no end-of-text token"):
        load(tmp_path, WITHOUT_END, eot="append")
    by_default = load(tmp_path, WITHOUT_END)
    assert sum("nothing separates one document from the next" in line for line in by_default.warnings) == 1
    assert by_default.recipe.eot == "none"
    confirmed = load(tmp_path, WITHOUT_END, eot="none")
    assert confirmed.recipe == by_default.recipe and not any("end-of-text" in line for line in confirmed.warnings)


def test_present_end_of_text_token_is_appended_by_default(tmp_path: Path) -> None:
    loaded = load(tmp_path, make_word_file("abc "))
    assert (
        loaded.recipe.eot == "append" and loaded.recipe == load(tmp_path, make_word_file("abc "), eot="append").recipe
    )
    assert load(tmp_path, make_word_file("abc "), eot="none").recipe.eot == "none"


def test_sentencepiece_model_without_end_is_rejected_too(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    with open(tmp_path / "x.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINING_TEXT),
            model_writer=file,
            vocab_size=100,
            hard_vocab_limit=False,
            eos_id=-1,
            minloglevel=2,
        )
    recipe = Recipe(corpus="x", tokenizer=str(tmp_path / "x.model"), eot="append")
    with pytest.raises(MisuseError, match="has no end-of-text token"):
        load_recipe_tokenizer(recipe)


@pytest.mark.parametrize("name", ["sentencepiece", "char", "byte", "gpt2"])
def test_other_kinds_have_an_end_of_text_token(cache: Path, name: str) -> None:
    for eot in ("auto", "append"):
        loaded = load_recipe_tokenizer(Recipe(corpus="x", tokenizer=name, eot=eot))
        assert loaded.recipe.eot == "append" and not loaded.warnings
    assert load_recipe_tokenizer(Recipe(corpus="x", tokenizer=name, eot="none")).recipe.eot == "none"


def test_tokens_in_brackets_that_are_not_marked_as_special_are_named(tmp_path: Path) -> None:
    names = ("<think>", "</think>", "[TOOL]", "<\x1b>", "word")
    added = [{**ADDED_TOKEN, "id": 5 + i, "content": name} for i, name in enumerate(names)]
    loaded = load(tmp_path, make_word_file("abcd", added_tokens=added))
    assert [line for line in loaded.warnings if "added tokens" in line] == [
        "the tokenizer's added tokens '<think>', '</think>', '[TOOL]' and 1 other are taken as control tokens, as they "
        "are in brackets; in text they are encoded as ordinary characters"
    ]
