"""Recipes have typed settings, reject mistakes, and resolve to what the manifest stores."""

from __future__ import annotations

import datetime

import pytest

from preprocess.errors import MisuseError
from preprocess.recipes.catalog import list_builtin_corpora, load_recipe
from preprocess.recipes.schema import parse_recipe

FILE = {"name": "a", "sha256": "0" * 64, "bytes": 1}
MINIMAL = {"corpus": "x", "description": "", "licence": "", "format": "synthetic", "tokenizer": "byte"}


def test_load_recipe_loads_every_built_in_corpus() -> None:
    assert {"tinyshakespeare", "synthetic"} <= set(list_builtin_corpora())
    for corpus in list_builtin_corpora():
        assert load_recipe(corpus).corpus == corpus


def test_resolved_ignores_the_order_of_cleaning_rules() -> None:
    first, second = (
        load_recipe("synthetic", clean=rules).resolved() for rules in (("nfc", "line_ends"), ("line_ends", "nfc"))
    )
    assert first == second


def test_load_recipe_applies_overrides_that_are_not_none() -> None:
    recipe = load_recipe("tinyshakespeare", tokenizer="char", document=None, authors=False)
    assert (recipe.tokenizer, recipe.document, recipe.authors) == ("char", "passage", False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokeniser": "byte"}, "no setting is called 'tokeniser'; did you mean 'tokenizer'"),
        ({"filters": "c4"}, "filters must be of type list of str, got 'c4'"),
        ({"tokenizer": 3}, "tokenizer must be of type str, got 3"),
        ({"num_pairs": True}, "num_pairs must be of type int, got True"),
        ({"num_pairs": 0}, "num_pairs must be from 1 to 1,000,000, got 0"),
        (
            {"val_fraction": 1.0},
            "val_fraction must be at least 0 .* less than 1, such as 0.1, got 1.0",
        ),
        (
            {"val_fraction": float("nan")},
            "val_fraction must be at least 0 .* less than 1, such as 0.1, got nan",
        ),
        ({"clean": ["nfc", "shine"]}, "clean must be a list of mojibake, .*, trim, got 'shine'"),
        ({"year": 20_000}, "year must be from 0 to 9,999, got 20,000"),
        ({"files": [{"name": "a"}]}, r"files\[0\]: sha256 is missing; add it with a value of type str"),
        ({"filters": ["c5"]}, "no filter is called 'c5'; choose one of"),
        (
            {"min_characters": 5, "max_characters": 3},
            "min_characters must be at most max_characters, got 5 and 3; change one of them",
        ),
        ({"seed": -1}, "seed must be from 0 to .*, got -1"),
        ({"seed": 1 << 20_000}, "seed must be from 0 to .*, got a number of 20,001 bits"),
        ({"tokenizer": 1 << 20_000}, "tokenizer must be of type str, got a number of 20,001 bits"),
        (
            {"val_fraction": 10**400},
            "val_fraction must be at least 0 .* less than 1, such as 0.1, got a number of 1,329 bits",
        ),
        (
            {"val_fraction": float("inf")},
            "val_fraction must be at least 0 .* less than 1, such as 0.1, got inf",
        ),
        ({"tokenizer": {"a": 1}}, "tokenizer must be of type str, got a table"),
        ({"tokenizer": ["a"] * 9}, "tokenizer must be of type str, got a list of 9"),
        ({"tokenizer": datetime.date(2020, 1, 2)}, "tokenizer must be of type str, got datetime.date"),
        ({"files": 5}, "files must be a list of tables, got 5; write"),
        ({"files": ["a"]}, "files must be a list of tables, got a list of 1"),
        ({"files": [FILE | {"sha256": "00"}]}, r"files\[0\]: the sha256 of a must be 64 digits 0-9 a-f, got '00'"),
        ({"files": [FILE | {"bytes": -1}]}, r"files\[0\]: the bytes of a must be from 0 to .*, got -1"),
        ({"author": "x" * 10_001}, "author must have at most 10,000 characters, got 10,001"),
        ({"template": "{" * 1_000_000}, "template must have at most 10,000 characters, got 1,000,000"),
        ({"separator": "caf\udcff"}, r"separator must be UTF-8 text, got 'caf\\udcff'"),
        ({"x" * 10_000: 1}, "no setting is called 'x{79}…; choose one of"),
    ],
)
def test_parse_recipe_rejects_mistakes(fields: dict, message: str) -> None:
    with pytest.raises(MisuseError, match=message) as caught:
        parse_recipe(MINIMAL | fields, origin="x.toml")
    assert len(str(caught.value)) < 1_500 and str(caught.value).startswith("x.toml: ")


def test_parse_recipe_rejects_a_missing_setting() -> None:
    with pytest.raises(MisuseError, match="x.toml: corpus is missing"):
        parse_recipe({k: v for k, v in MINIMAL.items() if k != "corpus"}, origin="x.toml")


def test_load_recipe_suggests_a_similar_corpus() -> None:
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
def test_load_recipe_rejects_settings_without_effect(corpus: str, overrides: dict, flag: str) -> None:
    with pytest.raises(MisuseError, match=f"has no effect on {corpus} .* leave {flag} out"):
        load_recipe(corpus, **overrides)


def test_load_recipe_rejects_a_contiguous_split_of_a_synthetic_corpus() -> None:
    with pytest.raises(
        MisuseError, match="split 'contiguous' cuts text files, but the format of the corpus is synthetic"
    ):
        load_recipe("synthetic", split="contiguous")


def test_resolved_leaves_out_settings_without_effect() -> None:
    resolved = load_recipe("tinyshakespeare", document="file").resolved()
    assert (
        not {"description", "licence", "num_pairs", "num_pieces", "passage_characters", "seed", "bos"} & resolved.keys()
    )
    assert "url" not in resolved["files"][0] and resolved["files"][0]["name"] == "input.txt"
    assert load_recipe("tinyshakespeare").resolved()["passage_characters"] == 2000
    assert load_recipe("synthetic").resolved()["num_pieces"] == 3000
