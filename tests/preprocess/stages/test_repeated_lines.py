"""Lines and paragraphs of texts, compared with those of plain string methods."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.stages import repeated_lines
from preprocess.stages.repeated_lines import MAX_SPAN_BYTES, find_units, remove_units

PIECES = st.sampled_from(["a", "bé", " ", "\n", "\n", "\n\n", "ccc", "中中", "word word", "z" * (MAX_SPAN_BYTES + 1)])
TEXTS = st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=5)
UNIT = st.sampled_from(["line", "paragraph"])


def to_arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(["before", *texts], pa.large_string()).slice(1)


def list_units(text: str, unit: str, min_characters: int) -> list[str]:
    parts = text.split("\n") if unit == "line" else re.split(r"\n{2,}", text.strip("\n"))
    return [part for part in parts if len(part) >= min_characters]


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
    edited = remove_units(batch, units, is_removed).column("text")
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
        found = remove_units(batch, units, units.hashes == menu)
        assert found.column("text").to_pylist() == expected


def test_hash_of_a_long_unit_does_not_depend_on_its_neighbours() -> None:
    assert repeated_lines.MAX_SPAN_BYTES < 5000
    long = "x" * 5000
    alone, inside = (find_units(to_arrow([text]), "line", 1) for text in (long, f"a\n{long}\nb"))
    assert inside.hashes[1] == alone.hashes[0] != find_units(to_arrow([long[:-1] + "y"]), "line", 1).hashes[0]
