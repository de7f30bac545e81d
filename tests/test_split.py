"""Where texts are cut, and who goes to validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.errors import FolioError
from preprocess.stages.split import contiguous_cut, cut_document, exact_split, passage_ends

TEXTS = st.text("ab\n\n é", max_size=80)


def test_the_cut_is_nanogpts() -> None:
    assert contiguous_cut(1_115_394, 0.1) == 1_003_854 == int(1_115_394 * 0.9)
    assert contiguous_cut(10, 0.8) == 2 != int(10 * (1 - 0.8))  # floats lose one


@given(TEXTS, st.integers(1, 30))
def test_passages_joined_are_the_text(text: str, num_characters: int) -> None:
    ends = passage_ends(text, num_characters)
    assert ends == sorted(set(ends)) and (not text or ends[-1] == len(text))
    for start, end in zip([0, *ends], ends[:-1], strict=False):
        passage = text[start:end]
        assert passage.endswith("\n\n") and text[end] != "\n" and passage.strip("\n")
        # Never longer than asked for unless no blank line came sooner.
        assert len(passage.rstrip("\n")) <= num_characters or "\n\n" not in passage.strip("\n")


@given(st.text("ab\n é", min_size=2, max_size=60), st.floats(0.05, 0.95), st.none() | st.integers(1, 9))
def test_both_sides_joined_are_the_text(text: str, val_fraction: float, passage_characters: int | None) -> None:
    batch = make_batch({"text": pa.array([text], pa.large_string()), "author": "A", "year": 7}, 1)
    pieces, in_val = cut_document(batch, val_fraction=val_fraction, passage_characters=passage_characters)
    texts = pieces.column("text").to_pylist()
    border = contiguous_cut(len(text), val_fraction)
    assert "".join(np.array(texts, object)[~in_val]) == text[:border] and "".join(np.array(texts, object)[in_val]) == text[border:]
    assert pieces.column("position").to_pylist() == list(range(len(texts))) and set(pieces.column("author").to_pylist()) == {"A"}


def test_real_passages_are_about_as_long_as_asked(mirror: Path) -> None:
    text = (mirror / "tinyshakespeare/input.txt").read_text()
    lengths = np.diff([0, *passage_ends(text, 2000)])
    assert 1500 < np.median(lengths) <= 2000 and lengths.max() < 4000


@given(st.lists(st.integers(0, 30), min_size=4, max_size=60), st.floats(0.1, 0.9), st.integers(0, 99))
def test_exactly_the_share_of_groups_and_no_group_on_both_sides(names: list[int], val_fraction: float, seed: int) -> None:
    groups = np.stack([np.array(names, np.uint64), np.zeros(len(names), np.uint64)], axis=1)
    distinct = len(set(names))
    num_val = round(distinct * val_fraction)
    if num_val in (0, distinct):
        with pytest.raises(FolioError, match="one side would be empty"):
            exact_split(groups, val_fraction, seed=seed)
        return
    in_val = exact_split(groups, val_fraction, seed=seed)
    val = {n for n, v in zip(names, in_val, strict=True) if v}
    assert len(val) == num_val and not val & {n for n, v in zip(names, in_val, strict=True) if not v}
    order = np.random.default_rng(seed).permutation(len(names))
    assert (exact_split(groups[order], val_fraction, seed=seed) == in_val[order]).all()


def test_seeds_choose_differently() -> None:
    groups = np.stack([np.arange(1000, dtype=np.uint64)] * 2, axis=1)
    assert (exact_split(groups, 0.1, seed=0) != exact_split(groups, 0.1, seed=1)).any()
