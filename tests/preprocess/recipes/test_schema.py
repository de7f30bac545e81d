"""Recipes: typed, resolved, and every mistake named."""

from __future__ import annotations

import pytest

from preprocess.errors import MisuseError
from preprocess.recipes.catalog import builtin_corpora, load_recipe
from preprocess.recipes.schema import parse_recipe

LEAST = {"corpus": "x", "description": "", "licence": "", "format": "synthetic", "tokenizer": "byte"}


def test_every_built_in_recipe_loads() -> None:
    assert {"tinyshakespeare", "synthetic"} <= set(builtin_corpora())
    for corpus in builtin_corpora():
        assert load_recipe(corpus).corpus == corpus


def test_the_order_of_rules_is_not_a_setting() -> None:
    one, two = (
        load_recipe("synthetic", clean=rules).resolved() for rules in (("nfc", "line_ends"), ("line_ends", "nfc"))
    )
    assert one == two


def test_overrides_replace_and_none_does_not() -> None:
    recipe = load_recipe("tinyshakespeare", tokenizer="char", document=None, authors=False)
    assert (recipe.tokenizer, recipe.document, recipe.authors) == ("char", "passage", False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokeniser": "byte"}, "no setting is called 'tokeniser'; did you mean 'tokenizer'"),
        ({"tokenizer": 3}, "tokenizer is 3, wanted str"),
        ({"num_pairs": True}, "num_pairs is True, wanted int"),
        ({"num_pairs": 0}, "num_pairs is 0, wanted 1 to"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0, wanted a number between 0 and 1"),
        ({"val_fraction": float("nan")}, "val_fraction is nan"),
        ({"clean": ["nfc", "shine"]}, "no cleaning rule is called 'shine'"),
        ({"year": 20_000}, "year is 20,000, wanted 0 to 9,999"),
        ({"files": [{"name": "a"}]}, r"files\[0\]: sha256 is missing, wanted str"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_mistakes_are_named(fields: dict, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        parse_recipe(LEAST | fields, where="x.toml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(MisuseError, match="x.toml: corpus is missing"):
        parse_recipe({k: v for k, v in LEAST.items() if k != "corpus"}, where="x.toml")


def test_an_unknown_corpus_names_the_nearest() -> None:
    with pytest.raises(MisuseError, match="did you mean 'tinyshakespeare'"):
        load_recipe("tinyshakespear")


@pytest.mark.parametrize(
    ("corpus", "overrides", "flag"),
    [
        ("synthetic", {"tokenizer": "byte", "num_pieces": 400}, "--num-pieces"),
        ("tinyshakespeare", {"num_pairs": 7}, "--num-pairs"),
        ("tinyshakespeare", {"seed": 1}, "--seed"),
    ],
)
def test_a_setting_without_effect_is_refused(corpus: str, overrides: dict, flag: str) -> None:
    with pytest.raises(MisuseError, match=f"has no effect on {corpus} .* leave {flag} out"):
        load_recipe(corpus, **overrides)


@pytest.mark.parametrize("overrides", [{"split": "contiguous"}])
def test_a_corpus_without_files_cannot_be_cut(overrides: dict) -> None:
    with pytest.raises(MisuseError, match="contiguous"):
        load_recipe("synthetic", **overrides)


def test_what_decides_no_byte_is_not_in_the_manifest() -> None:
    bare = load_recipe("tinyshakespeare", document="file").resolved()
    assert not {"description", "licence", "num_pairs", "num_pieces", "passage_characters", "seed", "bos"} & bare.keys()
    assert "url" not in bare["files"][0] and bare["files"][0]["name"] == "input.txt"
    assert load_recipe("tinyshakespeare").resolved()["passage_characters"] == 2000
    assert load_recipe("synthetic").resolved()["num_pieces"] == 3000
