"""Cutting texts at the split's boundary and into passages."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.stages.split import compute_contiguous_cut, cut_document, iter_passage_ends

TEXTS = st.text("ab\n\n é", max_size=80)


def test_contiguous_cut_is_that_of_nanogpt() -> None:
    assert compute_contiguous_cut(1_115_394, 0.1) == 1_003_854 == int(1_115_394 * 0.9)
    assert compute_contiguous_cut(10, 0.8) == 2 != int(10 * (1 - 0.8))  # floats give 1


def find_ends(text: str, num_characters: int) -> list[int]:
    """Return the ends that `iter_passage_ends` finds, in characters."""
    data = text.encode()
    found = iter_passage_ends(np.frombuffer(data, np.uint8), num_characters)
    return [len(data[:end].decode()) for ends in found for end in ends]


def find_ends_by_definition(text: str, num_characters: int) -> list[int]:
    """Do what the docstring of `iter_passage_ends` says, with the methods of a string."""
    ends, start = [], 0
    while len(text) - start > num_characters:
        begin = len(text) - len(text[start:].lstrip("\n"))
        cut = text.rfind("\n\n", begin, start + num_characters)
        if cut < 0:
            cut = text.find("\n\n", max(begin, start + num_characters - 1))
        if cut < 0:
            break
        start = len(text) - len(text[cut:].lstrip("\n"))
        ends.append(start)
    return ends if start == len(text) else [*ends, len(text)]


@given(TEXTS, st.integers(1, 30))
def test_passages_joined_are_the_text(text: str, num_characters: int) -> None:
    ends = find_ends(text, num_characters)
    assert ends == sorted(set(ends)) and (not text or ends[-1] == len(text))
    for start, end in zip([0, *ends], ends[:-1], strict=False):
        passage = text[start:end]
        assert passage.endswith("\n\n") and text[end] != "\n" and passage.strip("\n")
        # A passage is only longer than num_characters if it has no blank line inside.
        assert len(passage.rstrip("\n")) <= num_characters or "\n\n" not in passage.strip("\n")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, st.integers(1, 30), st.sampled_from([1, 2, 3, 7, 1 << 20]))
def test_passages_do_not_depend_on_the_windows_in_which_they_are_found(
    monkeypatch: pytest.MonkeyPatch, text: str, num_characters: int, window_bytes: int
) -> None:
    monkeypatch.setattr("preprocess.stages.split.WINDOW_BYTES", window_bytes)
    assert find_ends(text, num_characters) == find_ends_by_definition(text, num_characters)


@pytest.mark.parametrize("text", ["\n" * 2_000_000, "a\n\n" * 700_000, "я\n" * 700_000, "я" * 1_000_000])
def test_passages_of_an_unusual_text_are_found_in_linear_time(text: str) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    begin = time.process_time()
    assert [ends[-1] for ends in iter_passage_ends(data, 2000)][-1] == len(data)
    assert time.process_time() - begin < 0.5


@given(
    st.text("ab\n é", min_size=2, max_size=60),
    st.none() | st.integers(-5, 70),
    st.none() | st.integers(1, 9),
    st.sampled_from([1, 5, 1 << 20]),
)
def test_parts_of_a_cut_document_joined_are_its_sides(
    text: str, boundary: int | None, passage_characters: int | None, window_bytes: int
) -> None:
    batch = make_batch({"text": pa.array([text], pa.large_string()), "author": "A", "year": 7}, 1)
    texts: dict[bool, list[str]] = {False: [], True: []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.stages.split.WINDOW_BYTES", window_bytes)
        cuts = cut_document(batch, boundary=boundary, passage_characters=passage_characters)
        for parts, is_after_boundary in cuts:
            texts[is_after_boundary] += parts.column("text").to_pylist()
            assert set(parts.column("author").to_pylist()) == {"A"}
    cut = len(text) if boundary is None else min(max(boundary, 0), len(text))
    assert "".join(texts[False]) == text[:cut] and "".join(texts[True]) == text[cut:]
    assert all(texts[False]) and all(texts[True])


def test_passages_of_shakespeare_have_about_the_given_length(mirror: Path) -> None:
    text = (mirror / "tinyshakespeare/input.txt").read_text()
    lengths = np.diff([0, *find_ends(text, 2000)])
    assert 1500 < np.median(lengths) <= 2000 and lengths.max() < 4000
