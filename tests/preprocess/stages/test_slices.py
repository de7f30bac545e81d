"""Cutting long texts into slices that can be cleaned and encoded one after the other."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pyarrow as pa
import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.stages.slices import iter_groups, slice_texts
from preprocess.tokenizers.tiktoken_bpe import find_encoding, list_encodings

# Among them: all sorts of white space, characters of several categories with similar bytes, and marks.
TEXTS = st.text(
    "ab1Z'.,-/&;\u00a0\u3000\u2028\u0085\x0b\ufeff\u200b。，中國我я№é\u0301\u4dc0でです😀 \n\r\t", max_size=60
)


def to_arrow(texts: list[str]) -> pa.LargeStringArray:
    """Return a column that is a slice of a larger one."""
    return pa.array(["before", *texts, "after"], pa.large_string()).slice(1, len(texts))


@given(st.lists(TEXTS, max_size=5), st.integers(3, 20))
def test_slices_joined_are_the_texts(texts: list[str], slice_bytes: int) -> None:
    slices, first_slices = slice_texts(to_arrow(texts), slice_bytes=slice_bytes)
    slices.validate(full=True)
    assert first_slices[-1] == len(slices)
    slices_of_texts = [slices[a:b].to_pylist() for a, b in itertools.pairwise(first_slices)]
    assert ["".join(of_text) for of_text in slices_of_texts] == texts
    for of_text in slices_of_texts:
        assert of_text and all(len(text.encode()) >= slice_bytes for text in of_text[:-1])
        assert all(text[0] in " \n。" for text in of_text[1:])


@settings(max_examples=500)
@given(TEXTS, st.integers(3, 20))
def test_no_word_of_a_tokenizer_continues_from_slice_to_slice(text: str, slice_bytes: int) -> None:
    slices, _ = slice_texts(to_arrow([text]), slice_bytes=slice_bytes)
    for pattern in {find_encoding(name).pattern for name in list_encodings()}:
        words = [word for slice_ in slices.to_pylist() for word in regex.findall(pattern, slice_)]
        assert words == regex.findall(pattern, text)


def test_a_text_has_a_slice_per_slice_bytes() -> None:
    for text in ("some words " * 1000, "строка слов " * 1000, "中文文字。" * 1000, "QUJDREVGRw0123\n" * 1000):
        slices, _ = slice_texts(to_arrow([text]), slice_bytes=1000)
        assert len(slices) >= len(text.encode()) // 1100


@given(st.lists(TEXTS, max_size=5), st.integers(1, 20))
def test_slices_between_any_characters_have_equal_sizes(texts: list[str], slice_bytes: int) -> None:
    slices, first_slices = slice_texts(to_arrow(texts), "characters", slice_bytes)
    slices.validate(full=True)
    for text, (first, last) in zip(texts, itertools.pairwise(first_slices), strict=True):
        of_text = slices[first:last].to_pylist()
        assert "".join(of_text) == text and len(of_text) >= 1
        assert all(slice_bytes <= len(slice_.encode()) < slice_bytes + 4 for slice_ in of_text[:-1])


def test_texts_without_a_place_to_cut_are_one_slice_in_linear_time() -> None:
    texts = ["a" * 2_000_000, " " * 2_000_000, "x" + " \n" * 1_000_000]
    begin = time.process_time()
    slices, first_slices = slice_texts(to_arrow(texts))
    assert time.process_time() - begin < 0.5
    assert first_slices.tolist() == [0, 1, 2, 3] and slices.to_pylist() == texts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 50), max_size=12))
def test_groups_cover_all_slices_and_are_bounded(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    monkeypatch.setattr("preprocess.stages.slices.LONG_SLICE_BYTES", 20)
    slices = pa.array(["x" * size for size in sizes], pa.large_string())
    groups = list(iter_groups(slices, 30))
    assert [i for start, stop in groups for i in range(start, stop)] == list(range(len(sizes)))
    assert all(start < stop and sum(sizes[start:stop]) <= 30 * 1.5 + 20 for start, stop in groups)
    assert all(stop == start + 1 for start, stop in groups if max(sizes[start:stop]) > 20)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_empty_texts_are_slices(texts: list[str]) -> None:
    slices, first_slices = slice_texts(to_arrow(texts), slice_bytes=3)
    assert slices.to_pylist() == texts and np.array_equal(first_slices, range(len(texts) + 1))
