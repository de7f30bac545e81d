"""Encode texts, spot-check the fast backend, and add control tokens.

The spot check. The problem: the fast backend (gigatoken) encodes 200 MB/s, the reference library
of a tokenizer 5 MB/s. The reference defines the correct ids; a bug in the fast backend would
silently produce wrong training data. The idea: every process encodes a few of its documents with
both and compares the ids. If they differ, or if the fast backend fails, BackendMismatch is raised,
and a build then encodes everything again with the reference. The documents are chosen by a hash of
their content, so any kind of document can be among them. The cost: 25 ms for the first 128 kB of
text in each process. After that, 1/1024 of the documents are encoded by both, which adds 4 % to the
encoding time.

Control tokens. They are inserted by id around the encoded text. Text never becomes a control
token, because tokenizers encode it without knowledge of any control token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.recipes.schema import Recipe
from preprocess.shards.permutation import keyed_hash
from preprocess.stages.slices import is_long_slice
from preprocess.tokenizers.interface import Encoded, Tokenizer
from preprocess.tokenizers.lost_characters import LossCounter

INITIAL_CHECK_BYTES = 1 << 17  # of text, in every process
CALL_BYTES = 64  # a call of the reference costs as much time as encoding this much text
CHECK_FRACTION = 1 / 1024
MAX_CHECK_CHARACTERS = 1 << 16  # of one document, which may be a whole book


class BackendMismatch(Exception):
    """The fast backend failed, or its ids for a document differ from the reference's."""


class SpotCheck:
    """The choice of the documents of one process that the reference encodes too.

    At first about INITIAL_CHECK_BYTES of text are chosen, with at least one document. After that,
    the fraction CHECK_FRACTION of the documents is chosen.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._checked_bytes = seed, 0

    def choose_rows(self, hashes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return the rows of a batch to check, (S,) int64.

        `hashes` are the content hashes, (D, 16) uint8, and `sizes` the sizes in bytes, (D,).
        """
        if not len(hashes):
            return np.empty(0, np.int64)
        sizes = np.maximum(sizes, CALL_BYTES)
        missing_bytes = INITIAL_CHECK_BYTES - self._checked_bytes
        fraction = max(missing_bytes / int(sizes.sum(dtype=np.int64)), CHECK_FRACTION)
        rows = choose_spot_check(hashes, fraction, seed=self._seed, at_least_one=self._checked_bytes == 0)
        self._checked_bytes += int(sizes[rows].sum(dtype=np.int64))
        return rows


def choose_spot_check(hashes: np.ndarray, fraction: float, *, seed: int, at_least_one: bool) -> np.ndarray:
    """Return the rows, (S,) int64, of about `fraction` of the content hashes, (D, 16) uint8.

    Of the rows with equal hashes, only the first is returned. With `at_least_one`, D must be at
    least 1, and the result has at least one row.
    """
    keys = keyed_hash(seed, np.ascontiguousarray(hashes[:, :8]).view("<u8").reshape(-1))
    is_chosen = keys <= np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    if at_least_one:
        is_chosen[np.argmin(keys)] = True
    rows = np.flatnonzero(is_chosen)
    _, first = np.unique(keys[rows], return_index=True)
    return np.sort(rows[first])


def encode_checked(tokenizer: Tokenizer, texts: pa.LargeStringArray, rows: np.ndarray) -> Encoded:
    """Encode all texts, and compare the ids of `rows` with those of the reference.

    Returns flat ids (N,) uint32 and the exclusive end of each text in them, (D,) int64. Raises
    BackendMismatch if the ids of a text differ, or if the fast backend fails. If the tokenizer uses
    no fast backend, nothing is compared.
    """
    if not tokenizer.has_fast_backend:
        return tokenizer.encode(texts)
    try:
        ids, ends = tokenizer.encode(texts)
        if len(rows):
            _compare_with_reference(tokenizer, texts.take(pa.array(rows)), _take_documents(ids, ends, rows))
    except (BackendMismatch, MemoryError):
        raise
    except Exception as e:  # a compiled library may raise anything; the reference can still encode the texts
        raise BackendMismatch(f"{tokenizer.backend} failed ({type(e).__name__}: {e})") from e
    return ids, ends


def encode_long(tokenizer: Tokenizer, text: pa.LargeStringArray, *, is_checked: bool) -> Iterator[np.ndarray]:
    """Yield the ids of one text of many megabytes, (N,) uint32, in one or more arrays.

    With `is_checked`, its beginning is compared with the reference. Raises BackendMismatch like
    `encode_checked`.
    """
    if is_checked:
        encode_checked(tokenizer, pc.utf8_slice_codeunits(text, 0, MAX_CHECK_CHARACTERS), np.zeros(1, np.int64))
    try:
        yield from tokenizer.encode_long(text)
    except Exception as e:
        if isinstance(e, MemoryError) or not tokenizer.has_fast_backend:
            raise
        raise BackendMismatch(f"{tokenizer.backend} failed ({type(e).__name__}: {e})") from e


def encode_group(
    tokenizer: Tokenizer, group: pa.LargeStringArray, is_checked: np.ndarray, loss_counter: LossCounter | None
) -> Iterator[Encoded]:
    """Yield the flat ids of G slices and the end of each, (G,) int64, at once, or those of one long slice in parts.

    `group`: one of `iter_groups`. `is_checked`: (G,) bool, which slices are compared with the reference.
    `loss_counter`, if any, counts the slices and their ids. Raises BackendMismatch like `encode_checked`.
    """
    if loss_counter is not None:
        loss_counter.add_text(group)
    if is_long_slice(group):
        long_ids = encode_long(tokenizer, group, is_checked=bool(is_checked[0]))
        parts: Iterator[Encoded] = ((ids, np.array([len(ids)])) for ids in long_ids)
    else:
        parts = iter([encode_checked(tokenizer, group, np.flatnonzero(is_checked))])
    for ids, ends in parts:
        if loss_counter is not None:
            loss_counter.add_ids(ids, ends)
        yield ids, ends


def _compare_with_reference(tokenizer: Tokenizer, texts: pa.LargeStringArray, ids_of_texts: list[np.ndarray]) -> None:
    heads = pc.utf8_slice_codeunits(texts, 0, MAX_CHECK_CHARACTERS)
    expected = _take_documents(*tokenizer.encode_reference(heads), np.arange(len(heads)))
    for text, head, ids, expected_ids in zip(texts, heads, ids_of_texts, expected, strict=True):
        # The head of a long text is encoded again: its ids need not be the first ids of the text.
        head_ids = ids if head == text else tokenizer.encode(pa.array([head.as_py()], pa.large_string()))[0]
        if not np.array_equal(head_ids, expected_ids):
            raise BackendMismatch(
                f"{tokenizer.backend} differs from {tokenizer.reference_backend} on {text.as_py()[:60]!r}"
            )


def _take_documents(ids: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    return [ids[ends[row - 1] if row else 0 : ends[row]] for row in rows.tolist()]


def add_control_tokens(
    ids: np.ndarray, ends: np.ndarray, leading: np.ndarray, trailing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Insert control ids before and after each of D documents.

    `ids` (N,) and `ends` (D,) are as `encode` returns them. `leading` (D, F) and `trailing` (D, K)
    are the ids to insert before and after each document; -1 means no id. Returns the new flat ids,
    of the dtype of `ids`, and the new ends.
    """
    num_leading, num_trailing = (leading >= 0).sum(axis=1), (trailing >= 0).sum(axis=1)  # (D,) each
    if not num_leading.any() and not num_trailing.any():
        return ids, ends
    new_ends = ends + np.cumsum(num_leading + num_trailing)
    new_starts = np.concatenate([[0], new_ends[:-1]]).astype(np.int64)
    out = np.empty(int(new_ends[-1]), ids.dtype)
    is_text = np.ones(len(out), bool)  # copying by a mask is twice as fast as by indices, which take 8 times the memory
    for table, first_offsets in ((leading, new_starts), (trailing, new_ends - num_trailing)):
        for column in range(table.shape[1]):
            rows = np.flatnonzero(table[:, column] >= 0)
            offsets = first_offsets[rows] + (table[rows, :column] >= 0).sum(axis=1)
            out[offsets] = table[rows, column]
            is_text[offsets] = False
    out[is_text] = ids
    return out, new_ends


def has_eot(recipe: Recipe, tokenizer: Tokenizer) -> bool:
    """Return whether every document ends with the tokenizer's end-of-text token."""
    return recipe.eot == "append" and tokenizer.eot_id is not None


def has_bos(recipe: Recipe, tokenizer: Tokenizer) -> bool:
    """Return whether every document begins with the tokenizer's begin-of-text token."""
    return recipe.bos and tokenizer.bos_id is not None
