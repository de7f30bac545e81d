"""Overlaps with evaluation items, compared with sets of n-grams that are made by plain string methods."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.stages import decontaminate, ngrams
from preprocess.stages.decontaminate import (
    MIN_WORDS,
    NUM_WORDS,
    Decontaminator,
    EvaluationIndex,
    IndexBuilder,
    find_overlaps,
)
from preprocess.stages.ngrams import SPACED, iter_words
from tests.helpers.memory import measure_peak_bytes

# Few different words, so that n-grams are found by chance; punctuation, white space and characters of all lengths.
PIECES = [
    *"abc",
    *"abcAB",
    " ",
    " ",
    " ",
    " ",
    "\n",
    ",",
    "-",
    "'",
    "…",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\x1f",
    "\u0085",
]
PIECES += ["é", "中", "😀", "’", "\u1680", "a b ", "b c a ", "x" * 64]
TEXT = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


def to_arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def list_words(text: str) -> list[str]:
    """Return the words as lm-evaluation-harness defines them."""
    lowered = "".join(c.lower() if c.isascii() else c for c in text if c not in string.punctuation)
    return lowered.split()


def list_ngrams(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def list_item_ngrams(text: str) -> set[tuple[str, ...]]:
    words = list_words(text)
    return list_ngrams(words, min(len(words), NUM_WORDS)) if len(words) >= MIN_WORDS else set()


def make_index(items: list[str], *, num_files: int = 1) -> EvaluationIndex:
    builder = IndexBuilder()
    for number in range(num_files):
        of_file = items[number::num_files]
        builder.add(to_arrow(of_file), np.arange(len(of_file)))
        builder.finish_file(f"{number}.txt", "0" * 64, len(of_file))
    return builder.build()


@settings(deadline=None)
@given(st.lists(TEXT, max_size=6), st.integers(1, 200))
def test_words_are_those_of_plain_string_methods(texts: list[str], window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "WINDOW_BYTES", window)
        parts = [(w[:n], d[:n]) for w, d, n in iter_words(to_arrow(["before", *texts]).slice(1), SPACED, 3)]
    words, documents = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    expected = [(number, word.encode()[:64]) for number, text in enumerate(texts) for word in list_words(text)]
    assert documents.tolist() == [number for number, _ in expected]
    assert len(set(words.tolist())) == len({word for _, word in expected})
    assert len(set(zip(words.tolist(), (word for _, word in expected), strict=True))) == len(set(words.tolist()))


@settings(deadline=None)
@given(st.lists(TEXT, max_size=5), st.lists(TEXT, max_size=6), st.integers(20, 300))
def test_overlaps_are_those_of_sets(items: list[str], texts: list[str], window: int) -> None:
    texts += [f"a {text} b" for text in items]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "WINDOW_BYTES", window)
        index = make_index(items)
        decontaminator = Decontaminator(index, is_dropping=True)
        is_kept = decontaminator.judge(to_arrow(texts))
    of_items = [list_item_ngrams(item) for item in items]
    of_texts = [
        set().union(*(list_ngrams(list_words(text), n) for n in range(MIN_WORDS, NUM_WORDS + 1))) for text in texts
    ]
    assert is_kept.tolist() == [not any(found & of_item for of_item in of_items) for found in of_texts]
    assert index.num_ngrams.tolist() == [len(of_item) for of_item in of_items]
    num_documents = [sum(bool(found & of_item) for found in of_texts) for of_item in of_items]
    expected = {i: n for i, n in enumerate(num_documents) if n}
    found_items, counts, _ = decontaminator.counter.list_found()
    assert dict(zip(found_items.tolist(), counts.tolist(), strict=True)) == expected
    everything = set().union(*of_texts)
    assert decontaminator.counter.count_ngrams().tolist() == [len(everything & of_item) for of_item in of_items]


def make_words(first: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(first, first + count))


def test_case_and_punctuation_make_no_difference() -> None:
    index = make_index([make_words(0, 20)])
    upper = ", ".join(f"«{word}»" for word in make_words(3, 13).upper().split())
    hyphenated = make_words(3, 13).replace("w", "w-")
    assert find_overlaps(to_arrow([hyphenated, upper, make_words(3, 12)]), index).documents.tolist() == [0]
    quoted = ", ".join(f'"{word}"' for word in make_words(3, 13).upper().split())
    assert find_overlaps(to_arrow([quoted]), index).documents.tolist() == [0]


@pytest.mark.parametrize(("num_words", "is_found"), [(7, False), (8, True), (12, True), (13, True)])
def test_short_item_is_found_as_a_whole_or_not_at_all(num_words: int, is_found: bool) -> None:
    item = make_words(0, num_words)
    index = make_index([item])
    assert index.files[0].num_short == (not is_found)
    whole, part = f"before {item} after", make_words(0, num_words - 1)
    assert find_overlaps(to_arrow([part, whole]), index).documents.tolist() == ([1] if is_found else [])


def test_item_with_several_texts_is_counted_once() -> None:
    builder = IndexBuilder()
    for first in (0, 100):
        builder.add(to_arrow([make_words(first, 14), "A"]), np.array([0, 1]))
    builder.finish_file("a.csv", "0" * 64, 2)
    index = builder.build()
    assert index.num_ngrams.tolist() == [4, 0] and index.files[0].num_short == 1
    overlaps = find_overlaps(to_arrow([f"{make_words(0, 14)} . {make_words(100, 14)}"]), index)
    assert overlaps.items.tolist() == [0] and len(overlaps.ngrams) == 4


def test_saved_index_finds_the_same(tmp_path: Path) -> None:
    items = [make_words(i * 10, 15) for i in range(20)]
    index = make_index(items, num_files=3)
    index.save(tmp_path)
    loaded = EvaluationIndex.load(tmp_path)
    assert loaded.files == index.files and loaded.lengths == index.lengths
    texts = to_arrow([make_words(i, 14) for i in range(0, 250, 7)])
    for name in ("documents", "items", "num_documents", "ngrams"):
        expected = getattr(find_overlaps(texts, index), name)
        assert len(expected) and (getattr(find_overlaps(texts, loaded), name) == expected).all()


def test_index_without_items_finds_nothing() -> None:
    for index in (make_index([]), make_index(["too short", ""])):
        assert not len(find_overlaps(to_arrow([make_words(0, 30)]), index).documents)


def test_too_many_ngrams_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decontaminate, "MAX_NGRAMS", 10)
    make_index([make_words(0, 22)])
    with pytest.raises(FolioError, match="more than 10 sequences of 13 words; name fewer files"):
        make_index([make_words(0, 23)])


def test_batches_change_nothing() -> None:
    texts = [make_words(i, 20) for i in range(0, 300, 11)]
    index = make_index([make_words(i, 15) for i in range(0, 300, 40)])
    whole = find_overlaps(to_arrow(texts), index)
    one_by_one = [find_overlaps(to_arrow([text]), index) for text in texts]
    assert whole.documents.tolist() == [i for i, each in enumerate(one_by_one) if len(each.documents)]
    counts = Counter(itertools.chain(*(each.items.tolist() for each in one_by_one)))
    assert dict(zip(whole.items.tolist(), whole.num_documents.tolist(), strict=True)) == counts


def test_phrase_of_all_items_in_all_texts_needs_no_memory_for_each_pair() -> None:
    phrase = make_words(0, NUM_WORDS)
    index = make_index([f"{phrase} item{i}" for i in range(4_000)])
    texts = to_arrow([f"{phrase} text{i % 3000}" for i in range(4_000)])
    overlaps = find_overlaps(texts, index)
    assert len(overlaps.items) == 4_000 and set(overlaps.num_documents.tolist()) == {4_000}
    assert measure_peak_bytes(lambda: find_overlaps(texts, index)) < 32 << 20  # 256 MB for 16 million pairs


def test_phrase_that_a_text_repeats_needs_memory_once() -> None:
    index = make_index([" ".join(["0"] * NUM_WORDS)])
    text = to_arrow(["0 " * 2_000_000])
    assert find_overlaps(text, index).num_documents.tolist() == [1]
    assert measure_peak_bytes(lambda: find_overlaps(text, index)) < 64 << 20  # 32 bytes for each place are as much
