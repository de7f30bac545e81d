"""Lines and paragraphs of texts, compared with those of plain string methods."""

from __future__ import annotations

import dataclasses
import re
import tracemalloc
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.stages import repeated_lines
from preprocess.stages.repeated_lines import MAX_SPAN_BYTES, UnitRemover, Units, iter_units

PIECES = st.sampled_from(["a", "bé", " ", "\n", "\n", "\n\n", "ccc", "中中", "word word", "z" * (MAX_SPAN_BYTES + 1)])
TEXTS = st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=5)
UNIT = st.sampled_from(["line", "paragraph"])


def to_arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(["before", *texts], pa.large_string()).slice(1)


def list_units(text: str, unit: str, min_characters: int) -> list[str]:
    parts = text.split("\n") if unit == "line" else re.split(r"\n{2,}", text.strip("\n"))
    return [part for part in parts if len(part) >= min_characters]


def find_units(texts: pa.LargeStringArray, unit: str, min_characters: int) -> Units:
    parts = [dataclasses.astuple(part) for part in iter_units(texts, unit, min_characters)]
    empty = [np.empty(0, np.int64)] * 5
    return Units(*(np.concatenate(arrays) for arrays in (zip(*parts, strict=True) if parts else zip(empty))))


def remove_units(batch: pa.RecordBatch, unit: str, min_characters: int, is_removed: np.ndarray) -> pa.RecordBatch:
    """`is_removed`: of the units of all parts."""
    remover, number = UnitRemover(batch.column("text")), 0
    for units in iter_units(batch.column("text"), unit, min_characters):
        remover.remove(units, is_removed[number : number + len(units)])
        number += len(units)
    return remover.apply_to(batch)


@settings(deadline=None)
@given(TEXTS, UNIT, st.integers(1, 4))
def test_units_are_those_of_plain_string_methods(texts: list[str], unit: str, min_characters: int) -> None:
    units = find_units(to_arrow(texts), unit, min_characters)
    data = "".join(texts).encode()
    spans = zip(units.documents.tolist(), units.starts.tolist(), units.ends.tolist(), strict=True)
    found = [(document, data[start:end].decode()) for document, start, end in spans]
    assert found == [(i, each) for i, text in enumerate(texts) for each in list_units(text, unit, min_characters)]
    pairs = set(zip(units.hashes.tolist(), (text for _, text in found), strict=True))
    assert len(pairs) == len({text for _, text in found}) == len(set(units.hashes.tolist()))


@settings(deadline=None)
@given(TEXTS, UNIT, st.integers(1, 4), st.integers(0, 2**60))
def test_removal_keeps_the_other_units_and_documents(
    texts: list[str], unit: str, min_characters: int, bits: int
) -> None:
    units = find_units(to_arrow(texts), unit, min_characters)
    is_removed = np.array([bits >> (i % 60) & 1 for i in range(len(units))], bool)
    batch = make_batch({"text": to_arrow(texts)}, len(texts))
    edited = remove_units(batch, unit, min_characters, is_removed).column("text")
    edited.validate(full=True)
    number = 0
    for text, new in zip(texts, edited.to_pylist(), strict=True):
        of_text = list_units(text, unit, min_characters)
        is_kept = ~is_removed[number : number + len(of_text)]
        number += len(of_text)
        assert list_units(new, unit, min_characters) == [
            each for each, kept in zip(of_text, is_kept, strict=True) if kept
        ]
        short = [each for each in list_units(text, unit, 1) if len(each) < min_characters]
        assert [each for each in list_units(new, unit, 1) if len(each) < min_characters] == short
        if is_kept.all():
            assert new == text
        else:
            assert not new or not new.endswith("\n") or text.endswith("\n") or not is_kept[-1:].all()


def test_separators_of_removed_lines_are_removed() -> None:
    texts = ["menu\nfirst\n\nmenu\n\nlast", "first\nmenu", "first\n\nmenu\n", "menu"]
    for unit, expected in (
        ("line", ["first\n\nlast", "first", "first", ""]),
        ("paragraph", ["menu\nfirst\n\nlast", "first\nmenu", "first", ""]),
    ):
        units = find_units(to_arrow(texts), unit, 1)
        menu = find_units(to_arrow(["menu"]), unit, 1).hashes[0]
        batch = make_batch({"text": to_arrow(texts)}, len(texts))
        found = remove_units(batch, unit, 1, units.hashes == menu)
        assert found.column("text").to_pylist() == expected


def test_hash_of_a_long_unit_does_not_depend_on_its_neighbours() -> None:
    assert repeated_lines.MAX_SPAN_BYTES < 5000
    long = "x" * 5000
    alone, inside = (find_units(to_arrow([text]), "line", 1) for text in (long, f"a\n{long}\nb"))
    assert inside.hashes[1] == alone.hashes[0] != find_units(to_arrow([long[:-1] + "y"]), "line", 1).hashes[0]


@settings(deadline=None)
@given(TEXTS, UNIT, st.integers(1, 4), st.integers(0, 2**60), st.integers(1, 9))
def test_windows_change_no_unit_and_no_removal(
    texts: list[str], unit: str, min_characters: int, bits: int, window: int
) -> None:
    units = find_units(to_arrow(texts), unit, min_characters)
    is_removed = np.array([bits >> (i % 60) & 1 for i in range(len(units))], bool)
    batch = make_batch({"text": to_arrow(texts)}, len(texts))
    edited = remove_units(batch, unit, min_characters, is_removed)
    with mock.patch.object(repeated_lines, "WINDOW_BYTES", window):
        in_windows = find_units(to_arrow(texts), unit, min_characters)
        assert remove_units(batch, unit, min_characters, is_removed).equals(edited)
    for array, expected in zip(dataclasses.astuple(in_windows), dataclasses.astuple(units), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize("text", ["a\n", "a\n\n", "\n"])
def test_a_long_text_takes_a_small_multiple_of_its_bytes(unit: str, text: str) -> None:
    batch = make_batch({"text": [text * (2_000_000 // len(text)) + "b"]}, 1)
    with mock.patch.object(repeated_lines, "WINDOW_BYTES", 1 << 14):
        tracemalloc.start()
        try:
            remover = UnitRemover(batch.column("text"))
            for units in iter_units(batch.column("text"), unit, 1):
                remover.remove(units, np.arange(len(units)) % 2 == 0)
            remover.apply_to(batch)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 6 * 2_000_000, f"{peak / 2_000_000:.1f} bytes for a byte of text"
