"""Find documents that contain items of evaluation sets, so that a model is not tested on what it was trained on.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): a document that has a sequence of 13 words
in common with an item is contaminated. Words are defined as in the decontamination of
lm-evaluation-harness: the case of ASCII letters is ignored, ASCII punctuation is deleted, and white
space separates words. An item of 8 to 12 words is found if a document contains all of its words in a
row. Shorter items, such as the answers of most questions, would be found in many unrelated documents
and are not looked for. A sequence of words is called an n-gram below.

The n-grams of all items are hashed to 64 bits and sorted. A document's n-grams are looked up by binary
search, but only if their hash is in a bitmap, which excludes at least 15 of 16 that are not in an item.

Only hashes are compared, not words. With E n-grams of items and T words of documents, the expected
number of documents that are found by mistake is below E * T / 2^64: less than 0.01 for 10 million
n-grams and 10 billion words. Words of more than 64 bytes are identified by their first 64 bytes.

The index takes 13 to 20 bytes of memory for each n-gram of the items. MAX_NGRAMS limits their number.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.shards.permutation import mix64
from preprocess.stages.ngrams import SPACED, hash_ngrams, iter_words

NUM_WORDS = 13
MIN_WORDS = 8  # of an item; GPT-3 used n-grams of 8 to 13 words, depending on the lengths of an evaluation set's items
CONTAMINATED = "contaminated"  # the kind of the documents that are dropped, in the counts of a build
MAX_NGRAMS = 1 << 24  # of all items together, about 100 MB of text
BITS_PER_NGRAM = 16
ARRAYS = ("hashes", "item_starts", "items", "num_ngrams", "bitmap")


@dataclass(frozen=True)
class EvaluationFile:
    """A file of evaluation items."""

    name: str
    sha256: str
    num_items: int
    num_short: int  # items that are too short to be looked for


@dataclass(frozen=True)
class EvaluationIndex:
    """The n-grams of E items. Items are numbered across files; an n-gram may be in several items."""

    files: tuple[EvaluationFile, ...]
    lengths: tuple[int, ...]  # the numbers of words of the n-grams
    hashes: np.ndarray  # (N,) uint64, ascending
    item_starts: np.ndarray  # (N + 1,) int64: the items of n-gram i are items[item_starts[i] : item_starts[i + 1]]
    items: np.ndarray  # (P,) uint32, P pairs of an n-gram and an item that contains it
    num_ngrams: np.ndarray  # (E,) uint32, distinct n-grams of each item
    bitmap: np.ndarray  # (B / 8,) uint8, B bits, a power of two; the upper bits of each hash are the index of a set bit

    def save(self, path: Path) -> None:
        """Write the index to the folder `path`, which must exist."""
        for name in ARRAYS:
            np.save(path / f"{name}.npy", getattr(self, name))
        fields = {"files": [asdict(file) for file in self.files], "lengths": self.lengths}
        (path / "index.json").write_text(json.dumps(fields), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> EvaluationIndex:
        """Map the index in the folder `path`, so that all processes share its memory."""
        fields = json.loads((path / "index.json").read_text(encoding="utf-8"))
        files = tuple(EvaluationFile(**file) for file in fields["files"])
        # asarray returns a plain ndarray; operations on its subclass np.memmap take longer.
        arrays = {name: np.asarray(np.load(path / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
        return EvaluationIndex(files, tuple(fields["lengths"]), **arrays)


class IndexBuilder:
    """Collects the n-grams of evaluation items, file after file."""

    def __init__(self) -> None:
        self._files: list[EvaluationFile] = []
        self._lengths: set[int] = set()
        self._hashes: list[np.ndarray] = []
        self._items: list[np.ndarray] = []
        self._num_items = self._num_ngrams = 0
        self._has_ngrams: list[np.ndarray] = []  # of the items of the current file

    def add(self, texts: pa.LargeStringArray, positions: np.ndarray) -> None:
        """Add T texts of items. `positions`: (T,), the index of each text's item in the file.

        An item may have several texts, and each is looked for separately. Raises FolioError if there
        are more than MAX_NGRAMS n-grams.
        """
        num_words = np.zeros(len(texts), np.int64)
        for _, documents, num_starts in iter_words(texts, SPACED, 1):
            num_words += np.bincount(documents[:num_starts], minlength=len(texts))
        lengths = np.where(num_words >= MIN_WORDS, np.minimum(num_words, NUM_WORDS), 0)
        for length in np.unique(lengths[lengths > 0]).tolist():
            self._lengths.add(length)
            for words, documents, num_starts in iter_words(texts, SPACED, length):
                hashes, is_whole = hash_ngrams(words, documents, length, num_starts)
                of_starts = documents[:num_starts]
                is_ngram = is_whole & (lengths[of_starts] == length)
                self._append(hashes[is_ngram], positions[of_starts[is_ngram]])

    def _append(self, hashes: np.ndarray, positions: np.ndarray) -> None:
        self._num_ngrams += len(hashes)
        if self._num_ngrams > MAX_NGRAMS:
            raise FolioError(
                f"the files of --decontaminate have more than {MAX_NGRAMS:,} sequences of {NUM_WORDS} words; name "
                "fewer files, or leave out long texts that are not part of the questions"
            )
        self._hashes.append(hashes)
        self._items.append((positions + self._num_items).astype(np.uint32))
        self._has_ngrams.append(np.unique(positions))

    def finish_file(self, name: str, sha256: str, num_items: int) -> None:
        """End the current file, which has `num_items` items."""
        num_found = len(np.unique(np.concatenate([np.empty(0, np.int64), *self._has_ngrams])))
        self._files.append(EvaluationFile(name, sha256, num_items, num_items - num_found))
        self._num_items += num_items
        self._has_ngrams = []

    def build(self) -> EvaluationIndex:
        """Return the index of all items."""
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        items = np.concatenate([np.empty(0, np.uint32), *self._items])
        self._hashes, self._items = [], []
        order = np.lexsort((items, hashes))
        hashes, items = hashes[order], items[order]
        is_new_hash = np.ones(len(hashes), bool)
        is_new_hash[1:] = hashes[1:] != hashes[:-1]
        is_new = is_new_hash.copy()  # an item may repeat an n-gram
        is_new[1:] |= items[1:] != items[:-1]
        hashes, items, is_new_hash = hashes[is_new], items[is_new], is_new_hash[is_new]
        starts = np.flatnonzero(is_new_hash)
        distinct = hashes[starts]
        return EvaluationIndex(
            tuple(self._files),
            tuple(sorted(self._lengths)),
            distinct,
            np.append(starts, len(items)),
            items,
            np.bincount(items, minlength=self._num_items).astype(np.uint32),
            _make_bitmap(distinct),
        )


def _make_bitmap(hashes: np.ndarray) -> np.ndarray:
    num_bits = 1 << max((len(hashes) * BITS_PER_NGRAM - 1).bit_length(), 3)
    is_set = np.zeros(num_bits, bool)
    is_set[hashes >> np.uint64(64 - num_bits.bit_length() + 1)] = True
    return np.packbits(is_set, bitorder="little")


@dataclass(frozen=True)
class Overlaps:
    """The n-grams that texts have in common with evaluation items."""

    documents: np.ndarray  # (C,) int64, ascending: the texts that have an n-gram of an item
    items: np.ndarray  # (P,) int64, ascending: the items of which a text contains a part
    num_documents: np.ndarray  # (P,) int64: the number of texts that contain a part of each of them
    ngrams: np.ndarray  # (M,) int64, ascending: the distinct n-grams of the index that are found


def find_overlaps(texts: pa.LargeStringArray, index: EvaluationIndex) -> Overlaps:
    """Return which of D texts have n-grams of evaluation items."""
    found, num_ngrams = [np.empty(0, np.int64)], len(index.hashes)
    for words, of_words, num_starts in iter_words(texts, SPACED, NUM_WORDS) if num_ngrams else ():
        for length in index.lengths:
            rows, ngrams = _look_up(*hash_ngrams(words, of_words, length, num_starts), index)
            # One number for each pair of a text and an n-gram, which a text can repeat a million times.
            found.append(np.unique(of_words[rows] * num_ngrams + ngrams))
    documents, ngrams = np.divmod(np.unique(np.concatenate(found)), max(num_ngrams, 1))
    items, num_documents = _count_documents(documents, ngrams, index)
    return Overlaps(np.unique(documents), items, num_documents, np.unique(ngrams))


def _count_documents(
    documents: np.ndarray, ngrams: np.ndarray, index: EvaluationIndex
) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of which a text has an n-gram, and how many texts have one: (P,) int64 each.

    `documents`, `ngrams`: distinct pairs of a text and an n-gram of it, (N,) int64 each, ascending.

    A phrase of a prompt can be in every item and in every text, and pairs of a text and an item would
    fill the memory. So texts with the same n-grams are counted together, and others one after the other.
    """
    num_documents = np.zeros(len(index.num_ngrams), np.int64)
    starts = np.flatnonzero(np.diff(documents, prepend=-1))  # of the texts
    if len(starts):
        of_texts = np.add.reduceat(mix64(ngrams.astype(np.uint64)), starts)  # a hash of the n-grams of each text
        _, first_texts, num_equal = np.unique(of_texts, return_index=True, return_counts=True)
        ends = np.append(starts[1:], len(ngrams))
        for start, end, count in zip(starts[first_texts], ends[first_texts], num_equal, strict=True):
            num_documents[_list_items(ngrams[start:end], index)] += count
    items = np.flatnonzero(num_documents)
    return items, num_documents[items]


def _list_items(ngrams: np.ndarray, index: EvaluationIndex) -> np.ndarray:
    """Return the distinct items that have one of the n-grams."""
    starts = index.item_starts[ngrams]
    counts = index.item_starts[ngrams + 1] - starts
    first = np.cumsum(counts) - counts
    return np.unique(index.items[np.arange(counts.sum()) + np.repeat(starts - first, counts)])


def _look_up(hashes: np.ndarray, is_whole: np.ndarray, index: EvaluationIndex) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the hashes that are in the index, and the numbers of their n-grams: (K,) int64 each."""
    num_bits = len(index.bitmap) * 8
    bits = hashes >> np.uint64(64 - num_bits.bit_length() + 1)
    is_set = (index.bitmap[bits >> np.uint64(3)] >> (bits & np.uint64(7)).astype(np.uint8)) & 1
    rows = np.flatnonzero(is_whole & (is_set != 0))
    numbers = np.searchsorted(index.hashes, hashes[rows])
    is_found = index.hashes[np.minimum(numbers, len(index.hashes) - 1)] == hashes[rows]
    return rows[is_found], numbers[is_found]


class OverlapCounter:
    """Counts the documents that have n-grams of each item, and notes which n-grams were found."""

    def __init__(self, index: EvaluationIndex) -> None:
        self._index = index
        self._num_documents = np.zeros(len(index.num_ngrams), np.int64)  # by item
        self._is_found = np.zeros(len(index.hashes), bool)

    def add(self, items: np.ndarray, num_documents: np.ndarray, ngrams: np.ndarray) -> None:
        """Add what was found in other texts: distinct items, how many documents have each, and n-grams.

        (P,), (P,) and (M,) int64.
        """
        self._num_documents[items] += num_documents
        self._is_found[ngrams] = True

    def list_found(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the items that were found, the number of documents of each, and the n-grams that were found.

        (P,), (P,) and (M,) int64.
        """
        items = np.flatnonzero(self._num_documents)
        return items, self._num_documents[items], np.flatnonzero(self._is_found)

    def count_ngrams(self) -> np.ndarray:
        """Return how many distinct n-grams of each item were found: (E,) int64."""
        starts = self._index.item_starts
        is_found = np.repeat(self._is_found, np.diff(starts))
        return np.bincount(self._index.items[is_found], minlength=len(self._num_documents))


class Decontaminator:
    """Drops documents that contain evaluation items, and counts the items that were found."""

    def __init__(self, index: EvaluationIndex, *, is_dropping: bool) -> None:
        """`is_dropping`: whether contaminated documents are dropped. Otherwise they are only counted."""
        self._index, self._is_dropping = index, is_dropping
        self.counter = OverlapCounter(index)
        self.num_documents = 0  # that are contaminated

    def judge(self, texts: pa.LargeStringArray) -> np.ndarray:
        """Return which of D texts are kept: (D,) bool."""
        overlaps = find_overlaps(texts, self._index)
        self.counter.add(overlaps.items, overlaps.num_documents, overlaps.ngrams)
        self.num_documents += len(overlaps.documents)
        is_kept = np.ones(len(texts), bool)
        is_kept[overlaps.documents] = not self._is_dropping
        return is_kept
