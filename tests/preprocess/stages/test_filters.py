"""Dropping documents by their length."""

from __future__ import annotations

import pyarrow as pa

from preprocess.stages.filters import select_by_length


def test_select_by_length_counts_short_and_long_texts() -> None:
    texts = pa.array(["", "яя", "яяя", "abcd"], pa.large_string())
    keep, counts = select_by_length(texts, 2, 3)
    assert keep.tolist() == [False, True, True, False] and counts == {"too_short": 1, "too_long": 1}
    keep, counts = select_by_length(texts, None, None)
    assert counts == {} and keep.all()
