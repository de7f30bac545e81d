"""Find documents that are nearly equal: shingles, MinHash signatures and the hashes of their bands.

The problem: a copy with one changed word has another content hash, so it is not found as a
duplicate. If it is in validation and its original in training, the validation loss measures memory.
Comparing all pairs of documents would take too long.

The idea, which is that of Broder (1997) and Leskovec, Rajaraman and Ullman, *Mining of Massive
Datasets*, chapter 3: a document is the set of its *shingles*, all sequences of five words, and two
documents are as similar as their sets, by Jaccard's measure |A ∩ B| / |A ∪ B|. A *signature* has
K numbers, and each of them is equal in two documents with a probability that is their similarity.
It is cut into bands, and documents with an equal band are compared exactly
(build/near_dedup/). With 20 bands of 5 numbers, two documents with a similarity of 0.8 have
an equal band with a probability of 0.9996, of 0.5 with 0.47, and of 0.3 with 0.05. Web corpora are
often deduplicated with 14 bands of 8, which compares fewer documents and finds 0.92 of the pairs with
a similarity of 0.8: the other 8 % could be on both sides of a split.

MinHash evaluates K hash functions for every shingle. Here a shingle is hashed once and assigned to
one of K bins by its hash, and number i of the signature is the smallest hash in bin i. Short
documents leave bins empty. These are filled in further rounds with other hash functions, which only
they need: fast similarity sketching of Dahlgaard, Knudsen and Thorup (arXiv 1704.04370).

Words are runs of letters and digits. Upper case is ignored in ASCII, and punctuation everywhere.
Scripts without spaces (Chinese, Japanese, Thai) have a word for each character.

The cost: about 10 ns for each byte of text, and 4 bytes of disk for each word.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from preprocess.filters.spans import MULTIPLIER
from preprocess.shards.permutation import mix64
from preprocess.stages.ngrams import LETTERS, hash_ngrams, iter_words

NUM_ROUNDS = 8  # in which all shingles are hashed again; the bins that are still empty are then filled one by one
CHUNK_SHINGLES = 1 << 20  # hashed at once
CHUNK_DOCUMENTS = 1 << 12  # whose signatures are computed at once; 900 bytes for each
MANY_SHINGLES = 10_000
LOW_BITS = np.uint64(0xFFFF_FFFF)
EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def hash_shingles(texts: pa.LargeStringArray, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the shingles of D texts, and how many each of them has.

    A shingle is `num_words` consecutive words. A text with fewer words is one shingle, and a text
    without words has none. Returns (S,) uint32, text after text, and (D,) uint32. A shingle that a
    text repeats is repeated.
    """
    counts = np.zeros(len(texts), np.int64)
    collected = bytearray()  # grows in place, while joining a list of arrays would need twice the memory
    previous = -1  # the document of the word before `words`
    for words, documents, num_starts in iter_words(texts, LETTERS, num_words):
        hashes, is_whole = hash_ngrams(words, documents, num_words, num_starts)
        of_starts = documents[:num_starts]
        is_shingle = is_whole | (np.diff(of_starts, prepend=previous) != 0)  # the first word of a document is one
        collected += (hashes[is_shingle] >> np.uint64(32)).astype(np.uint32).data
        counts += np.bincount(of_starts[is_shingle], minlength=len(texts))
        if num_starts:
            previous = int(of_starts[-1])
    return np.frombuffer(collected, np.uint32), counts.astype(np.uint32)


def hash_bands(shingles: np.ndarray, counts: np.ndarray, num_bands: int, rows_per_band: int) -> np.ndarray:
    """Return a hash of each band of the signatures of D documents: (D, num_bands) uint64.

    `shingles`, (S,) uint32, and `counts`, (D,), are as `hash_shingles` returns them. The bands of
    a document without shingles have no meaning.
    """
    bands = np.empty((len(counts), num_bands), np.uint64)
    ends = np.cumsum(counts, dtype=np.int64)
    for first in range(0, len(counts), CHUNK_DOCUMENTS):
        rows = slice(first, first + CHUNK_DOCUMENTS)
        of_chunk = shingles[ends[first] - counts[first] : ends[rows][-1]]
        signatures = compute_signatures(of_chunk, counts[rows], num_bands * rows_per_band)
        values = signatures.reshape(-1, num_bands, rows_per_band)
        hashes = np.broadcast_to(np.arange(num_bands, dtype=np.uint64), values.shape[:2])
        for i in range(rows_per_band):
            hashes = mix64(hashes * MULTIPLIER + values[:, :, i])
        bands[rows] = hashes
    return bands


def compute_signatures(shingles: np.ndarray, counts: np.ndarray, num_values: int) -> np.ndarray:
    """Return the MinHash signatures of D documents: (D, num_values) uint64.

    The fraction of equal values of two signatures is an unbiased estimate of the documents' Jaccard
    similarity. Those of a document without shingles are EMPTY.
    """
    signatures = np.full((len(counts), num_values), EMPTY, np.uint64)
    documents = np.arange(len(counts), dtype=np.int32)
    for round_number in range(NUM_ROUNDS):
        _add_round(signatures, shingles, (documents, counts), round_number)
        is_unfinished = (signatures[documents] == EMPTY).any(axis=1) & (counts > 0)
        if not is_unfinished.any():
            return signatures
        shingles, counts = _select(shingles, counts, is_unfinished)
        documents = documents[is_unfinished]
    _fill_empty(signatures, shingles, documents, counts)
    return signatures


def _add_round(
    signatures: np.ndarray, shingles: np.ndarray, runs: tuple[np.ndarray, np.ndarray], round_number: int
) -> None:
    """Assign each shingle to a bin, and set each bin to the smallest hash in it.

    A hash is larger than those of earlier rounds. `signatures`: (D, num_values), modified.
    `shingles`: (S,). `runs`: rows of `signatures`, (U,), and how many consecutive shingles each of them has, (U,).
    """
    num_values = signatures.shape[1]
    rows, ends = runs[0], np.cumsum(runs[1], dtype=np.int64)
    for start in range(0, len(shingles), CHUNK_SHINGLES):
        num_here: np.ndarray = np.diff(np.clip(ends, start, start + CHUNK_SHINGLES), prepend=start)
        documents = np.repeat(rows, num_here)
        hashes = _rehash(shingles[start : start + CHUNK_SHINGLES], round_number)
        bins = ((hashes >> np.uint64(32)) * np.uint64(num_values) >> np.uint64(32)).astype(np.int64)
        bins += documents.astype(np.int64) * num_values
        np.minimum.at(signatures.reshape(-1), bins, (hashes & LOW_BITS) | np.uint64(round_number << 32))


def _select(shingles: np.ndarray, counts: np.ndarray, is_selected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shingles of the selected documents, and their numbers.

    A long document that is selected repeats a few shingles many times; each is then returned once.
    """
    ends, selected_counts = np.cumsum(counts, dtype=np.int64)[is_selected], counts[is_selected]
    if not (selected_counts > MANY_SHINGLES).any():
        return shingles[np.repeat(is_selected, counts)], selected_counts
    of_documents = [
        _find_different(shingles[end - count : end])
        for end, count in zip(ends.tolist(), selected_counts.tolist(), strict=True)
    ]
    return np.concatenate(of_documents), np.array([len(each) for each in of_documents], counts.dtype)


def _find_different(shingles: np.ndarray) -> np.ndarray:
    """Return the distinct shingles of one document, or all of them if there are few."""
    if len(shingles) <= MANY_SHINGLES:
        return shingles
    chunks = range(0, len(shingles), CHUNK_SHINGLES)
    return np.unique(np.concatenate([np.unique(shingles[start : start + CHUNK_SHINGLES]) for start in chunks]))


def _fill_empty(signatures: np.ndarray, shingles: np.ndarray, documents: np.ndarray, counts: np.ndarray) -> None:
    """Set each empty bin to the smallest hash of all shingles, with a hash function of the bin.

    Only documents with few different shingles have empty bins after NUM_ROUNDS rounds.
    `signatures`: (D, num_values), modified. `documents`, `counts`: (U,), the rows whose shingles are given.
    """
    rows, bins = np.nonzero(signatures[documents] == EMPTY)
    first_shingles = np.cumsum(counts, dtype=np.int64) - counts
    lengths = counts[rows].astype(np.int64)  # of the bins: the number of hashes of which the smallest is taken
    ends = np.cumsum(lengths)
    start = 0
    while start < len(rows):
        stop = max(int(np.searchsorted(ends, (ends[start - 1] if start else 0) + CHUNK_SHINGLES)), start + 1)
        n = lengths[start:stop]
        edges = np.cumsum(n) - n
        indices = np.repeat(first_shingles[rows[start:stop]] - edges, n) + np.arange(n.sum())
        numbers = np.repeat(bins[start:stop] + NUM_ROUNDS, n)
        hashes = _rehash(shingles[indices], numbers) & LOW_BITS
        smallest = np.minimum.reduceat(hashes, edges)
        signatures[documents[rows[start:stop]], bins[start:stop]] = smallest | np.uint64(NUM_ROUNDS << 32)
        start = stop


def _rehash(shingles: np.ndarray, number: int | np.ndarray) -> np.ndarray:
    """Return the hash function `number` of (N,) shingles: (N,) uint64."""
    return mix64(shingles.astype(np.uint64) | (np.asarray(number).astype(np.uint64) << np.uint64(32)))
