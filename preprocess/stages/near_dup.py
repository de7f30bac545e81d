"""Find documents that are nearly equal: shingles, MinHash signatures and the hashes of their bands.

The problem: a copy with one changed word has another content hash, so it is not found as a
duplicate. If it is in validation and its original in training, the validation loss measures memory.
Comparing all pairs of documents would take too long.

The idea, which is that of Broder (1997) and Leskovec, Rajaraman and Ullman, *Mining of Massive
Datasets*, chapter 3: a document is the set of its *shingles*, all sequences of five words, and two
documents are as similar as their sets, by Jaccard's measure |A ∩ B| / |A ∪ B|. A *signature* has
K numbers, and each of them is equal in two documents with a probability that is their similarity.
It is cut into bands, and documents with an equal band are compared exactly
(build/near_duplicates.py). With 14 bands of 8 numbers, two documents with a similarity of 0.8 have
an equal band with a probability of 0.92, of 0.85 with 0.99, and of 0.5 with 0.05.

MinHash evaluates K hash functions for every shingle. Here a shingle is hashed once and assigned to
one of K bins by its hash, and number i of the signature is the smallest hash in bin i. Short
documents leave bins empty. These are filled in further rounds with other hash functions, which only
they need: fast similarity sketching of Dahlgaard, Knudsen and Thorup (arXiv 1704.04370).

Words are runs of letters and digits. Upper case is ignored in ASCII, and punctuation everywhere.
Scripts without spaces (Chinese, Japanese, Thai) have a word for each character.

The cost: about 10 ns for each byte of text, and 4 bytes of disk for each word.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.shards.permutation import mix64

WINDOW_BYTES = 1 << 18  # of text whose words are found at once
MAX_SEPARATOR_BYTES = 3
WORD_BYTES = 64  # a longer word is identified by its first bytes
NUM_ROUNDS = 8  # in which all shingles are hashed again; the bins that are still empty are then filled one by one
CHUNK_SHINGLES = 1 << 20  # hashed at once
CHUNK_DOCUMENTS = 1 << 12  # whose signatures are computed at once; 900 bytes for each
MANY_SHINGLES = 10_000
LOW_BITS = np.uint64(0xFFFF_FFFF)
EMPTY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

# Each byte of a word in lower case; 0 for bytes that separate words. Bytes from 0x80 are parts of longer characters.
LOWER = np.array([ord(chr(b).lower()) if b >= 0x80 or chr(b).isalnum() else 0 for b in range(256)], np.uint8)
LOWER[0x80:] = np.arange(0x80, 0x100)
# First bytes of U+3000 to U+9FFF and of characters above U+FFFF, which are words by themselves.
IS_WORD_BY_ITSELF = np.zeros(256, bool)
IS_WORD_BY_ITSELF[0xE3:0xEA] = IS_WORD_BY_ITSELF[0xF0:0xF5] = True
THAI_LEAD, THAI_SECOND = 0xE0, (0xB8, 0xBB)  # first two bytes of Thai and Lao characters
PREFIX_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)  # of the first n bytes of a little-endian u8
MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2**64 / golden ratio, odd


def hash_shingles(texts: pa.LargeStringArray, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the shingles of D texts, and how many each of them has.

    A shingle is `num_words` consecutive words. A text with fewer words is one shingle, and a text
    without words has none. Returns (S,) uint32, text after text, and (D,) uint32. A shingle that a
    text repeats is repeated.
    """
    data, offsets = get_text_buffers(texts)
    counts = np.zeros(len(texts), np.int64)
    collected = bytearray()  # grows in place, while joining a list of arrays would need twice the memory
    words, documents = np.empty(0, np.uint64), np.empty(0, np.int64)  # of shingles that continue in the next window
    previous = -1  # the document of the word before `words`
    for window_words, window_documents, is_last in _iter_words(data, offsets):
        words, documents = np.concatenate([words, window_words]), np.concatenate([documents, window_documents])
        is_new = np.diff(documents, prepend=previous) != 0  # the first word of a document
        num_positions = len(words) if is_last else max(len(words) - num_words + 1, 0)
        hashes, is_whole = _join_words(words, documents, num_words, num_positions)
        is_shingle = is_whole | is_new[:num_positions]
        collected += (hashes[is_shingle] >> np.uint64(32)).astype(np.uint32).data
        counts += np.bincount(documents[:num_positions][is_shingle], minlength=len(texts))
        if num_positions:
            previous = int(documents[num_positions - 1])
        words, documents = words[num_positions:], documents[num_positions:]
    return np.frombuffer(collected, np.uint32), counts.astype(np.uint32)


def _join_words(
    words: np.ndarray, documents: np.ndarray, num_words: int, num_positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of the words from each of the first positions on, and whether all are of one document.

    `words`, `documents`: (W,). Returns (num_positions,) uint64 and (num_positions,) bool.
    """
    hashes = np.zeros(num_positions, np.uint64)
    is_whole = np.zeros(num_positions, bool)
    for i in range(num_words):
        num_here = min(num_positions, max(len(words) - i, 0))
        is_same = documents[i : i + num_here] == documents[:num_here]
        hashes *= MULTIPLIER
        hashes[:num_here] += np.where(is_same, words[i : i + num_here], np.uint64(0))
        is_whole[:] = False
        is_whole[:num_here] = is_same
    return mix64(hashes), is_whole


def _iter_words(data: np.ndarray, offsets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Yield (hashes, documents, is_last) for the words that begin in each window of the text.

    `data`, (N,) uint8, and `offsets`, (D + 1,) int64, as `get_text_buffers` returns them. `hashes`:
    (W,) uint64. `documents`: (W,) int64, the index of each word's document.
    """
    for start in range(0, max(len(data), 1), WINDOW_BYTES):
        stop = min(start + WINDOW_BYTES, len(data))
        # The window is extended, as a word may end after it, and a separator may begin before it.
        first, last = max(start - MAX_SEPARATOR_BYTES, 0), min(stop + WORD_BYTES + MAX_SEPARATOR_BYTES, len(data))
        characters = _find_characters(data[first:last])
        document_starts = offsets[np.searchsorted(offsets, first) : np.searchsorted(offsets, last)] - first
        starts, lengths = _find_words(characters, document_starts)
        in_window = slice(np.searchsorted(starts, start - first), np.searchsorted(starts, stop - first))
        starts, lengths = starts[in_window], lengths[in_window]
        num_words_before = np.searchsorted(starts, np.clip(offsets - first, 0, last - first))
        documents = np.repeat(np.arange(len(offsets) - 1), np.diff(num_words_before))
        yield _hash_words(characters, starts, lengths), documents, stop == len(data)


def _find_characters(data: np.ndarray) -> np.ndarray:
    """Return the bytes of text in lower case, with 0 for those that separate words: (N,) uint8."""
    characters: np.ndarray = LOWER[data]
    for lead, second, num_bytes in ((0xC2, None, 2), (0xE2, 0x80, 3)):  # U+0080 to U+00BF, U+2000 to U+203F
        found = np.flatnonzero(data == lead)
        if second is not None and len(found):
            found = found[found + 1 < len(data)]
            found = found[data[found + 1] == second]
        for i in range(num_bytes if len(found) else 0):
            characters[found[found + i < len(data)] + i] = 0
    return characters


def _find_words(characters: np.ndarray, document_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts of the words, and their lengths in bytes, at most WORD_BYTES: (W,) int64 each.

    `characters`: (N,) uint8. `document_starts`: the offsets at which documents begin, all below N.
    """
    is_word = characters != 0
    is_start = is_word.copy()
    is_start[1:] &= ~is_word[:-1]
    is_start |= IS_WORD_BY_ITSELF[characters]
    thai = np.flatnonzero(characters[:-1] == THAI_LEAD)
    is_start[thai[(characters[thai + 1] >= THAI_SECOND[0]) & (characters[thai + 1] <= THAI_SECOND[1])]] = True
    is_start[document_starts] = is_word[document_starts]
    is_last = is_word.copy()  # the last byte of a word is followed by a separator or by another word
    is_last[:-1] &= is_start[1:] | ~is_word[1:]
    starts, last_bytes = np.flatnonzero(is_start), np.flatnonzero(is_last)
    return starts, np.minimum(last_bytes - starts + 1, WORD_BYTES)


def _hash_words(characters: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a hash of each word: (W,) uint64. Words are read eight bytes at a time."""
    padded = np.concatenate([characters, np.zeros(8, np.uint8)])
    eight_bytes = np.ndarray((len(characters) + 1,), "<u8", padded.data, strides=(1,))  # from each byte on
    hashes = mix64(eight_bytes[starts] & PREFIX_MASKS[np.minimum(lengths, 8)])
    position = 8
    rest = np.flatnonzero(lengths > position)
    while len(rest):
        part = eight_bytes[starts[rest] + position] & PREFIX_MASKS[np.minimum(lengths[rest] - position, 8)]
        hashes[rest] = mix64(hashes[rest] * MULTIPLIER + part)
        position += 8
        rest = rest[lengths[rest] > position]
    return hashes


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
    """Return the different shingles of one document, or all of them if there are few."""
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
