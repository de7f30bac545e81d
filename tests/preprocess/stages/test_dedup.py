"""Hashes of contents and groups."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from preprocess.stages.dedup import content_hashes, group_hashes


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@given(st.lists(st.text(max_size=8), max_size=12), st.integers(0, 3))
def test_a_hash_is_of_the_text_alone(texts: list[str], skip: int) -> None:
    hashes = content_hashes(arrow(texts).slice(skip))
    assert [bytes(h) for h in hashes] == [xxhash.xxh3_128(t.encode()).digest() for t in texts[skip:]]


def test_groups_go_by_name_and_the_nameless_by_content() -> None:
    hashes = content_hashes(arrow(["x", "y", "x", "z"]))
    keys = group_hashes(pa.array(["1", "1", None, "2"]), hashes)
    assert keys.shape == (4, 16) and (keys[0] == keys[1]).all() and len(np.unique(keys, axis=0)) == 3
