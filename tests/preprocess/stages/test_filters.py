"""Dropping documents by their length."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from preprocess.stages.filters import select_by_length


def test_select_by_length_finds_short_and_long_texts() -> None:
    texts = pa.array(["", "яя", "яяя", "abcd"], pa.large_string())
    keep, dropped = select_by_length(texts, 2, 3)
    assert keep.tolist() == [False, True, True, False]
    assert {kind: np.flatnonzero(rows).tolist() for kind, rows in dropped.items()} == {
        "too_short": [0],
        "too_long": [3],
    }
    keep, dropped = select_by_length(texts, None, None)
    assert dropped == {} and keep.all()
