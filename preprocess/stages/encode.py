"""Texts → ids with control tokens around them.

A control id is put where it belongs by its id. No text can become one: the tokenizers encode text without knowing
any control token (architecture law 6).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from preprocess.shards.windows import keyed_hash
from preprocess.tokenizers.interface import Tokenizer


class EngineMismatch(Exception):
    """The fast engine and the reference gave different ids for a document."""


def sample_for_check(hashes: np.ndarray, fraction: float, *, seed: int) -> np.ndarray:
    """The documents whose ids are compared with the reference's: (S,) row numbers, about `fraction` of (D, 16) hashes."""
    key = keyed_hash(seed, np.ascontiguousarray(hashes[:, :8]).view("<u8").reshape(-1))
    return np.flatnonzero(key <= np.uint64(min(int(fraction * 2.0**64), 2**64 - 1)))


def encode_checked(tokenizer: Tokenizer, texts: pa.LargeStringArray, sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts, flat (N,) uint32, and each text's exclusive end in them (D,) int64.

    The rows of `sample` are encoded by the reference too; the first difference raises EngineMismatch.
    """
    ids, ends = tokenizer.encode(texts)
    if tokenizer.has_fast_engine and len(sample):
        expected, expected_ends = tokenizer.encode_reference(texts.take(pa.array(sample)))
        for i, row in enumerate(sample.tolist()):
            got = ids[ends[row - 1] if row else 0 : ends[row]]
            wanted = expected[expected_ends[i - 1] if i else 0 : expected_ends[i]]
            if not np.array_equal(got, wanted):
                raise EngineMismatch(f"{tokenizer.engine} differs from {tokenizer.reference_engine} on {texts[row].as_py()[:60]!r}")
    return ids, ends


def surround(ids: np.ndarray, ends: np.ndarray, front: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put control ids around each document.

    `ids` (N,), `ends` (D,) as `encode` gives them; `front` (D, F) and `back` (D, K): ids to place before and after
    each document, −1 for none. Returns the new flat ids, uint32, and the new ends.
    """
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    num_front, num_back = (front >= 0).sum(axis=1), (back >= 0).sum(axis=1)
    new_ends = ends + np.cumsum(num_front + num_back)
    out = np.empty(int(new_ends[-1]) if len(ends) else 0, np.uint32)
    new_starts = np.concatenate([[0], new_ends[:-1]]).astype(np.int64)
    shift = new_starts + num_front - starts
    out[np.arange(len(ids)) + np.repeat(shift, ends - starts)] = ids
    for column in range(front.shape[1]):
        rows = np.flatnonzero(front[:, column] >= 0)
        out[new_starts[rows] + (front[rows, :column] >= 0).sum(axis=1)] = front[rows, column]
    for column in range(back.shape[1]):
        rows = np.flatnonzero(back[:, column] >= 0)
        out[new_ends[rows] - num_back[rows] + (back[rows, :column] >= 0).sum(axis=1)] = back[rows, column]
    return out, new_ends
