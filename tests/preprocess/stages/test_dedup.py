"""Hashes of contents and groups."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from preprocess.stages.dedup import hash_contents, hash_group_names


def to_arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


@given(st.lists(st.text(max_size=8), max_size=12), st.integers(0, 3))
def test_hash_contents_depends_only_on_the_text(texts: list[str], offset: int) -> None:
    hashes = hash_contents(to_arrow(texts).slice(offset))
    assert [bytes(h) for h in hashes] == [xxhash.xxh3_128(text.encode()).digest() for text in texts[offset:]]


def test_hash_group_names_uses_the_name_or_else_the_content() -> None:
    hashes = hash_contents(to_arrow(["x", "y", "x", "z"]))
    group_hashes = hash_group_names(pa.array(["1", "1", None, "2"]), hashes)
    assert group_hashes.shape == (4, 16) and (group_hashes[0] == group_hashes[1]).all()
    assert len(np.unique(group_hashes, axis=0)) == 3
