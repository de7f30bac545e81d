"""The repetition rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), as FineWeb applies them.

The problem: a repeated sequence of words must be counted once where it overlaps itself. So a text is
read from left to right, and after a sequence that has been read before, reading continues after it.
That is a loop over words, once for each length of a sequence.

The idea: the words that belong to any repeated sequence are found by sorting hashes, and their share
of the text is never smaller than what the loop finds. Only in documents in which this share is above
the limit, the loop runs, and only over sequences that occur more than once.
"""

from __future__ import annotations

import numpy as np

from preprocess.filters.lines import Lines, split_at_runs_of_line_feeds, split_into_paragraphs
from preprocess.filters.rules import Judgement, RuleFilter, divide
from preprocess.filters.spans import MULTIPLIER, EqualElements, sum_between
from preprocess.filters.words import TextGroup, Words, find_words
from preprocess.recipes.filter_settings import GopherRepetition

TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)


class GopherRepetitionFilter(RuleFilter):
    """Drops documents that repeat lines, paragraphs or sequences of words."""

    reasons = (
        "empty", "duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines",
        "duplicate_line_characters", *(f"top_{n}_gram" for n in TOP_SIZES),
        *(f"duplicate_{n}_grams" for n in DUPLICATE_SIZES),
    )  # fmt: skip

    def __init__(self, settings: GopherRepetition) -> None:
        self._settings = settings
        self._top_limits = [getattr(settings, f"max_top_{n}_gram") for n in TOP_SIZES]
        self._duplicate_limits = [getattr(settings, f"max_duplicate_{n}_grams") for n in DUPLICATE_SIZES]

    def judge_group(self, group: TextGroup) -> Judgement:
        settings, words = self._settings, find_words(group)
        judgement, num_characters = Judgement(group.num_documents), group.count_characters()
        judgement.drop(0, num_characters, num_characters == 0)
        parts = (
            (split_into_paragraphs(group, words), settings.max_duplicate_paragraphs,
             settings.max_duplicate_paragraph_characters),
            (split_at_runs_of_line_feeds(group), settings.max_duplicate_lines, settings.max_duplicate_line_characters),
        )  # fmt: skip
        for i, (lines, max_lines, max_characters) in enumerate(parts):
            num_duplicates, in_duplicates = count_duplicates(group, lines)
            judgement.drop_above(1 + 2 * i, divide(num_duplicates, lines.counts), max_lines)
            judgement.drop_above(2 + 2 * i, divide(in_duplicates, num_characters), max_characters)
        grams = _Grams(words, words.hash(group.data))
        for i, (size, limit) in enumerate(zip(TOP_SIZES, self._top_limits, strict=True)):
            if limit is not None:
                judgement.drop_above(5 + i, divide(grams.measure_top(size), num_characters), limit)
        duplicates = _DuplicateGrams(grams)
        for i, (size, limit) in enumerate(zip(DUPLICATE_SIZES, self._duplicate_limits, strict=True)):
            if limit is not None:
                duplicates.find(size)
                bounds = divide(duplicates.bound(), num_characters)
                rows = np.flatnonzero((judgement.reasons < 0) & (bounds > limit))
                in_duplicates = np.zeros(group.num_documents, np.int64)
                in_duplicates[rows] = [duplicates.count(row) for row in rows.tolist()]
                judgement.drop_above(8 + i, divide(in_duplicates, num_characters), limit)
        return judgement


def count_duplicates(group: TextGroup, lines: Lines) -> tuple[np.ndarray, np.ndarray]:
    """Return how many lines of each text are equal to an earlier one, and their characters: (D,) int64 each."""
    repeated = EqualElements(lines.hash(group.data), lines.documents).find_repeated()
    is_duplicate = np.zeros(len(lines.starts), bool)
    is_duplicate[repeated] = True
    lengths = np.where(is_duplicate, lines.count_characters(group.data), 0)
    return sum_between(is_duplicate, lines.firsts), sum_between(lengths, lines.firsts)


class _Grams:
    """Sequences of words within texts, given by their first word."""

    def __init__(self, words: Words, hashes: np.ndarray) -> None:
        self.firsts, self.lengths, self.documents, self.hashes = words.firsts, words.lengths, words.documents, hashes
        self.num_left = words.firsts[1:][self.documents] - np.arange(len(hashes))  # (W,) words up to the text's end
        self.sums = np.concatenate([[0], np.cumsum(words.lengths)])  # (W + 1,) characters of words before each

    def find(self, size: int, among: np.ndarray | None = None) -> tuple[np.ndarray, EqualElements]:
        """Return the first words of all sequences of `size` words, (M,), and their groups of equal ones.

        `among`: only those that begin at these words, ascending.
        """
        starts = np.flatnonzero(self.num_left >= size) if among is None else among[self.num_left[among] >= size]
        hashes = np.zeros(len(starts), np.uint64)
        for i in range(size):
            hashes *= MULTIPLIER
            hashes += self.hashes[starts + i]
        return starts, EqualElements(hashes, self.documents[starts])

    def measure_top(self, size: int) -> np.ndarray:
        """Return the characters of the most frequent sequence of each text, with spaces, times its number: (D,) int64.

        Of several with the same number, the first in the text counts.
        """
        num_documents = len(self.firsts) - 1
        measured = np.zeros(num_documents, np.int64)
        starts, equal = self.find(size)
        # Without a repeated sequence, it is the first of the text.
        rows = np.flatnonzero(np.diff(self.firsts) >= size)
        first_words, counts = self.firsts[:-1].copy(), np.ones(num_documents, np.int64)
        is_repeated = equal.sizes > 1
        sizes, firsts = equal.sizes[is_repeated], starts[equal.firsts[is_repeated]]
        documents = self.documents[firsts]
        order = np.lexsort((firsts, -sizes, documents))
        found, of_found = np.unique(documents[order], return_index=True)
        first_words[found], counts[found] = firsts[order][of_found], sizes[order][of_found]
        characters = self.sums[first_words[rows] + size] - self.sums[first_words[rows]] + size - 1
        measured[rows] = characters * counts[rows]
        return measured


class _DuplicateGrams:
    """Sequences that occur more than once in a text, for one size after the other, from the smallest."""

    def __init__(self, grams: _Grams) -> None:
        self._grams = grams
        self._among: np.ndarray | None = None  # a longer sequence can only be repeated where a shorter one is

    def find(self, size: int) -> None:
        """Find the sequences of `size` words, which must be larger than in the last call."""
        starts, equal = self._grams.find(size, self._among)
        elements, self._groups = equal.number_large_groups()
        self._starts = self._among = starts[elements]
        self._repeated, self._size = starts[equal.find_repeated()], size

    def bound(self) -> np.ndarray:
        """Return the characters of all words that are in a sequence equal to an earlier one: (D,) int64."""
        grams = self._grams
        if not len(self._repeated):
            return np.zeros(len(grams.firsts) - 1, np.int64)
        changes = np.zeros(len(grams.lengths) + 1, np.int32)
        np.add.at(changes, self._repeated, 1)
        np.add.at(changes, self._repeated + self._size, -1)
        is_inside = np.cumsum(changes[:-1]) > 0
        return sum_between(np.where(is_inside, grams.lengths, 0), grams.firsts)

    def count(self, document: int) -> int:
        """Return the characters of repeated sequences of a text, read from left to right without overlaps."""
        first, last = np.searchsorted(self._starts, self._grams.firsts[document : document + 2]).tolist()
        starts = self._starts[first:last]
        lengths = self._grams.sums[starts + self._size] - self._grams.sums[starts]
        seen, position, total = set(), 0, 0
        for start, group, length in zip(
            starts.tolist(), self._groups[first:last].tolist(), lengths.tolist(), strict=True
        ):
            if start < position:
                continue
            if group in seen:
                total += length
                position = start + self._size
            else:
                seen.add(group)
        return total
