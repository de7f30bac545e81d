"""How filters are written in a recipe, and what a manifest stores."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.filter_settings import (
    FILTERS,
    PRESETS,
    BadWords,
    GopherQuality,
    expand_filters,
    format_filter,
    leave_out_folders,
    parse_filter,
)
from tests.conftest import assert_one_line


def test_the_canonical_spelling_has_all_settings_sorted() -> None:
    [spec] = expand_filters(None, ["word_count:min_words=7"])
    assert spec == "word_count:max_words=100000,min_words=7"
    assert expand_filters(None, [spec]) == (spec,)
    assert expand_filters(None, ["word_count:max_words=none, min_words=007"]) == (
        "word_count:max_words=none,min_words=7",
    )


def test_a_preset_comes_before_other_filters() -> None:
    names = [spec.partition(":")[0] for spec in expand_filters("fineweb", ["word_count"])]
    assert names == ["gopher_repetition", "gopher_quality", "c4", "fineweb_quality", "word_count"]
    assert "terminal_punctuation=false" in expand_filters("fineweb", [])[2]
    assert "terminal_punctuation=true" in expand_filters("c4", [])[0]


@pytest.mark.parametrize("name", FILTERS)
def test_every_setting_survives_its_spelling(name: str) -> None:
    required = {"bad_words": {"file": "a/b.txt"}, "classifier": {"model": "a/b"}, "perplexity": {"run": "a/b"}}
    settings = FILTERS[name](**required.get(name, {}))
    assert parse_filter(format_filter(name, settings)) == (name, settings)
    optional = {f.name: None for f in dataclasses.fields(FILTERS[name]) if "None" in str(f.type)}
    changed = dataclasses.replace(settings, **optional)
    assert parse_filter(format_filter(name, changed)) == (name, changed)


@given(st.text(), st.lists(st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]), min_size=1)))
def test_any_text_survives_its_spelling(path: str, words: list[str]) -> None:
    words = [word.strip() for word in words if word.strip()]
    settings = GopherQuality(stop_words=tuple(words))
    assert parse_filter(format_filter("gopher_quality", settings)) == ("gopher_quality", settings)
    path = "a" + path.strip() + "a"
    assert parse_filter(format_filter("bad_words", BadWords(file=path)))[1].file == path


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gopher_qualty", "no filter is called 'gopher_qualty'; did you mean 'gopher_quality'?"),
        ("", "no filter is called ''; choose one of "),
        ("c4:min_sentence=3", "the filter c4 has no setting 'min_sentence'; did you mean 'min_sentences'?"),
        ("c4:min_sentences", "the setting min_sentences of the filter c4 has no value; write min_sentences=VALUE"),
        ("c4:policy=yes", "policy of the filter c4 must be true or false, got 'yes'"),
        ("c4:min_sentences=1.5", "min_sentences of the filter c4 must be a whole number, or none to turn it off, got"),
        ("fineweb_quality:max_short_lines=nan", "must be a number, or none to turn it off, got 'nan'"),
        ("fineweb_quality:max_short_lines=2", "must be from 0 to 1, got 2.0"),
        ("c4:policy=true,policy=false", "the filter c4 has the setting policy twice; leave one of them out"),
        ("word_count:min_words=" + "9" * 5000, "must be a whole number"),
        (
            "word_count:max_words=20",  # with the default of min_words
            "min_words of the filter word_count must be at most max_words, got 50 and 20; change one of them, or turn "
            "it off with none",
        ),
        (
            "gopher_quality:max_words=9",
            "min_words of the filter gopher_quality must be at most max_words, got 50 and 9",
        ),
        ("gopher_quality:min_mean_word_length=20", "must be at most max_mean_word_length, got 20.0 and 10.0"),
        ("perplexity:run=r,min_bits=5,max_bits=3", "min_bits of the filter perplexity must be at most max_bits, got 5"),
        ("bad_words", "the filter bad_words needs a list of words; write bad_words:file=PATH"),
        ("x" * 20_000, "a filter must have at most 10,000 characters, got 20,000"),
        ("\x1b[31m", "no filter is called '\\x1b[31m'; choose one of"),
        ("c4:\ud800=3", "must be UTF-8 text"),
    ],
)
def test_a_wrong_filter_is_explained(spec: str, expected: str) -> None:
    with pytest.raises(MisuseError) as e:
        load_recipe(None, inputs=("a.txt",), filters=(spec,))
    assert expected in str(e.value)
    assert_one_line(str(e.value))


def test_equal_limits_and_limits_that_are_off_are_accepted() -> None:
    for spec in ("word_count:max_words=50", "word_count:min_words=none,max_words=20", "perplexity:run=r,min_bits=5"):
        load_recipe(None, inputs=("a.txt",), filters=(spec,))


def test_an_unknown_preset_is_explained() -> None:
    with pytest.raises(MisuseError, match="no quality preset is called 'finweb'; did you mean 'fineweb'"):
        expand_filters("finweb", [])


def test_chats_cannot_be_edited() -> None:
    with pytest.raises(MisuseError, match="the filter c4 removes lines from texts, but these documents are chats"):
        load_recipe(None, inputs=("a.jsonl",), chat_columns="messages", filters=("c4",))
    load_recipe(None, inputs=("a.jsonl",), chat_columns="messages", filters=("gopher_quality",))


def test_a_recipe_without_filters_stores_none() -> None:
    assert "filters" not in load_recipe(None, inputs=("a.txt",)).resolved()
    assert load_recipe(None, inputs=("a.txt",), filters=("c4",)).resolved()["filters"] == list(PRESETS_C4)


PRESETS_C4 = expand_filters(None, PRESETS["c4"])


def test_a_manifest_stores_the_name_of_a_file_without_its_folder() -> None:
    assert leave_out_folders("bad_words:file=/home/me/list.txt,sha256=ab") == "bad_words:file=list.txt,sha256=ab"
    assert leave_out_folders("bad_words:file=C:\\\\lists\\\\list.txt,sha256=ab") == "bad_words:file=list.txt,sha256=ab"


def test_too_many_filters_are_refused_before_they_are_read() -> None:
    """A recipe of a megabyte has room for 200,000, which would take minutes."""
    assert len(expand_filters(None, ["word_count"] * 10)) == 10
    with pytest.raises(MisuseError, match="there are 1,001 filters, expected at most 1,000; leave some out"):
        expand_filters(None, ["no such filter"] * 1_001)
