"""Texts → ids with control tokens around them.

A control id is put where it belongs by its id. No text can become one: the tokenizers encode text without knowing
any control token (architecture law 6).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.recipes.schema import Recipe
from preprocess.shards.windows import keyed_hash
from preprocess.tokenizers.interface import Encoded, Tokenizer

# The reference encodes 5 MB/s where gigatoken does 200: the first 128 kB of each process cost 25 ms, a thousandth behind them 4 %.
CHECKED_BYTES = 1 << 17
CHECKED_FRACTION = 1 / 1024


class BackendMismatch(Exception):
    """The fast engine and the reference gave different ids for a document."""


# Of a long document only this much is compared: the reference does 5 MB/s, and a document may be a whole book.
CHECKED_CHARACTERS = 1 << 16


def choose_spot_check(hashes: np.ndarray, fraction: float, *, seed: int, at_least_one: bool) -> np.ndarray:
    """The documents whose ids are compared with the reference's: (S,) row numbers, about `fraction` of (D, 16) hashes."""
    key = keyed_hash(seed, np.ascontiguousarray(hashes[:, :8]).view("<u8").reshape(-1))
    in_sample = key <= np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    if at_least_one:
        in_sample[np.argmin(key)] = True
    return np.flatnonzero(in_sample)


def encode_checked(tokenizer: Tokenizer, texts: pa.LargeStringArray, sample: np.ndarray) -> Encoded:
    """Ids of all texts, flat (N,) uint32, and each text's exclusive end in them (D,) int64.

    The rows of `sample` are encoded by the reference too; the first difference, or the fast engine's failing, raises BackendMismatch.
    """
    if not tokenizer.has_fast_backend:
        return tokenizer.encode(texts)
    try:
        ids, ends = tokenizer.encode(texts)
        if len(sample):
            _compare(tokenizer, texts.take(pa.array(sample)), _documents(ids, ends, sample))
    except (BackendMismatch, MemoryError):
        raise
    except Exception as e:  # whatever a compiled library may raise: the reference can still do the work
        raise BackendMismatch(f"{tokenizer.engine} failed ({type(e).__name__}: {e})") from e
    return ids, ends


def _compare(tokenizer: Tokenizer, texts: pa.LargeStringArray, got: list[np.ndarray]) -> None:
    heads = pc.utf8_slice_codeunits(texts, 0, CHECKED_CHARACTERS)
    expected = _documents(*tokenizer.encode_reference(heads), np.arange(len(heads)))
    for text, head, ids, wanted in zip(texts, heads, got, expected, strict=True):
        # The head of a long text is encoded anew: its ids are not the first of the whole text's.
        whole = ids if head == text else tokenizer.encode(pa.array([head.as_py()], pa.large_string()))[0]
        if not np.array_equal(whole, wanted):
            raise BackendMismatch(
                f"{tokenizer.engine} differs from {tokenizer.reference_backend} on {text.as_py()[:60]!r}"
            )


def _documents(ids: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return [ids[ends[row - 1] if row else 0 : ends[row]] for row in rows.tolist()]


def surround(ids: np.ndarray, ends: np.ndarray, front: np.ndarray, back: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put control ids around each document.

    `ids` (N,), `ends` (D,) as `encode` gives them; `front` (D, F) and `back` (D, K): ids to place before and after
    each document, −1 for none. Returns the new flat ids, of the dtype of `ids`, and the new ends.
    """
    num_front, num_back = (front >= 0).sum(axis=1), (back >= 0).sum(axis=1)
    if not num_front.any() and not num_back.any():
        return ids, ends
    new_ends = ends + np.cumsum(num_front + num_back)
    new_starts = np.concatenate([[0], new_ends[:-1]]).astype(np.int64)
    out = np.empty(int(new_ends[-1]), ids.dtype)
    is_text = np.ones(len(out), bool)  # a mask moves 3 GB/s, an array of places half of that in eight times the memory
    for table, base in ((front, new_starts), (back, new_ends - num_back)):
        for column in range(table.shape[1]):
            rows = np.flatnonzero(table[:, column] >= 0)
            places = base[rows] + (table[rows, :column] >= 0).sum(axis=1)
            out[places] = table[rows, column]
            is_text[places] = False
    out[is_text] = ids
    return out, new_ends


class SpotCheck:
    """Which documents the reference encodes too: 128 kB of a process' first, at least one, and then a thousandth."""

    def __init__(self, seed: int) -> None:
        self._seed, self._checked_bytes = seed, 0

    def rows(self, hashes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The rows of a batch to compare, (S,), by its contents' hashes (D, 16) and sizes in bytes (D,)."""
        if not len(hashes):
            return np.empty(0, np.int64)
        share = max((CHECKED_BYTES - self._checked_bytes) / int(sizes.sum(dtype=np.int64)), CHECKED_FRACTION)
        sample = choose_spot_check(hashes, share, seed=self._seed, at_least_one=self._checked_bytes == 0)
        self._checked_bytes += int(sizes[sample].sum(dtype=np.int64))
        return sample


def has_eot(recipe: Recipe, tokenizer: Tokenizer) -> bool:
    return recipe.eot == "append" and tokenizer.eot_id is not None


def has_bos(recipe: Recipe, tokenizer: Tokenizer) -> bool:
    return recipe.bos and tokenizer.bos_id is not None
