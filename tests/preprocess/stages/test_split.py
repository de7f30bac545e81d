"""Cutting texts at the split's boundary and into passages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.stages.split import compute_contiguous_cut, cut_document, find_passage_ends

TEXTS = st.text("ab\n\n é", max_size=80)


def test_contiguous_cut_is_that_of_nanogpt() -> None:
    assert compute_contiguous_cut(1_115_394, 0.1) == 1_003_854 == int(1_115_394 * 0.9)
    assert compute_contiguous_cut(10, 0.8) == 2 != int(10 * (1 - 0.8))  # floats give 1


@given(TEXTS, st.integers(1, 30))
def test_passages_joined_are_the_text(text: str, num_characters: int) -> None:
    ends = find_passage_ends(text, num_characters)
    assert ends == sorted(set(ends)) and (not text or ends[-1] == len(text))
    for start, end in zip([0, *ends], ends[:-1], strict=False):
        passage = text[start:end]
        assert passage.endswith("\n\n") and text[end] != "\n" and passage.strip("\n")
        # A passage is only longer than num_characters if it has no blank line inside.
        assert len(passage.rstrip("\n")) <= num_characters or "\n\n" not in passage.strip("\n")


@given(st.text("ab\n é", min_size=2, max_size=60), st.none() | st.integers(-5, 70), st.none() | st.integers(1, 9))
def test_parts_of_a_cut_document_joined_are_its_sides(
    text: str, boundary: int | None, passage_characters: int | None
) -> None:
    batch = make_batch({"text": pa.array([text], pa.large_string()), "author": "A", "year": 7}, 1)
    parts, is_after_boundary = cut_document(batch, boundary=boundary, passage_characters=passage_characters)
    texts = np.array(parts.column("text").to_pylist(), object)
    cut = len(text) if boundary is None else min(max(boundary, 0), len(text))
    assert "".join(texts[~is_after_boundary]) == text[:cut] and "".join(texts[is_after_boundary]) == text[cut:]
    assert set(parts.column("author").to_pylist()) == {"A"} and all(texts)


def test_passages_of_shakespeare_have_about_the_given_length(mirror: Path) -> None:
    text = (mirror / "tinyshakespeare/input.txt").read_text()
    lengths = np.diff([0, *find_passage_ends(text, 2000)])
    assert 1500 < np.median(lengths) <= 2000 and lengths.max() < 4000
