"""The words of texts, compared with a plain Python reference."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.filters import words as words_module
from preprocess.filters.characters import ALPHA, SYMBOL, SYMBOLS, find_kind, find_kinds
from preprocess.filters.words import TextGroup, find_words, iter_text_groups, iter_word_windows
from tests.helpers.memory import measure_peak_bytes
from tests.preprocess.filters.reference import split_words

ALPHABET = "abZ é1２_.'’,-…!?。 \n\t\u2028\xa0中文กำ\u0301\u200b😀#•'.１"
TEXTS = st.lists(st.text(st.sampled_from(ALPHABET), max_size=40), max_size=5)


def list_words(texts: list[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for group in iter_text_groups(pa.array(texts, pa.large_string())):
        words, data = find_words(group), group.data.tobytes()
        of_group = [data[a:b].decode() for a, b in zip(words.starts.tolist(), words.ends.tolist(), strict=True)]
        assert words.lengths.tolist() == [len(word) for word in of_group]
        assert words.have(ALPHA).tolist() == [any(c.isalpha() for c in word) for word in of_group]
        assert words.have(SYMBOL).tolist() == [all(ord(c) in SYMBOLS for c in word) for word in of_group]
        hashes = words.hash(group.data).tolist()
        assert len({*zip(of_group, hashes, strict=True)}) == len({*of_group}) == len({*hashes})
        found += [of_group[a:b] for a, b in zip(words.firsts.tolist(), words.firsts.tolist()[1:], strict=False)]
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop... it's U.S. 3.5!", ["Don't", "stop", "...", "it's", "U.S", ".", "3.5", "!"]),
        ("co-op -- $5,000", ["co", "-", "op", "--", "$", "5", ",", "000"]),
        ("日本語 กำ", ["日", "本", "語", "ก", "ำ"]),
        ("第3章 e\u0301", ["第", "3", "章", "e\u0301"]),
        ("", []),
        (" \n\u2028 ", []),
    ],
)
def test_words_are_runs_of_letters_or_of_one_other_character(text: str, expected: list[str]) -> None:
    assert list_words([text]) == [expected] == [split_words(text)]


@given(TEXTS)
def test_words_equal_the_reference(texts: list[str]) -> None:
    assert list_words(texts) == [split_words(text) for text in texts]


@given(st.lists(st.text(max_size=30), max_size=4))
def test_words_of_any_characters_equal_the_reference(texts: list[str]) -> None:
    assert list_words(texts) == [split_words(text) for text in texts]


@given(TEXTS, st.integers(1, 20))
def test_words_do_not_depend_on_how_texts_are_grouped_and_cut(texts: list[str], group_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_module, "GROUP_BYTES", group_bytes)
        assert list_words(texts) == [split_words(text) for text in texts]


def test_kinds_of_all_characters_are_looked_up_block_by_block() -> None:
    code_points = np.random.default_rng(0).integers(0, 0x110000, 3000)
    assert find_kinds(code_points).tolist() == [find_kind(c) for c in code_points.tolist()]


@pytest.mark.parametrize(
    "text",
    ["a" * 500_000, "１é." * 80_000, "\t" * 500_000, "😀" * 120_000, "-" * 499_000 + "'1,a" * 250],
    ids=["letters", "joined", "white space", "emoji", "punctuation"],
)
def test_words_of_a_long_text_without_spaces_take_less_than_twice_its_size(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [group] = iter_text_groups(pa.array([text], pa.large_string()))
    expected = find_words(group)  # all bytes at once
    monkeypatch.setattr(words_module, "GROUP_BYTES", 1 << 13)
    words = find_words(TextGroup(group.data, group.offsets))
    for name in ("starts", "ends", "lengths", "kinds", "firsts"):
        assert getattr(words, name).tolist() == getattr(expected, name).tolist()
    assert measure_peak_bytes(lambda: find_words(TextGroup(group.data, group.offsets))) < 2 * len(group.data)


def test_a_long_text_without_spaces_is_cut_wherever_a_word_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "GROUP_BYTES", 1 << 15)
    text = ("a" * 6000 + "," * 26_768) * 10  # the first bytes from which a place to cut is searched have none
    [group] = iter_text_groups(pa.array([text], pa.large_string()))
    assert max(len(window.data) for window in iter_word_windows(group)) <= 3 * words_module.GROUP_BYTES
