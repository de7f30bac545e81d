"""The repetition rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), as FineWeb applies them.

The problem: repeated sequences of words must be counted without overlaps. So a text is read from left
to right, and if a sequence was read before, reading continues after its last word. This needs a loop
over words for each length of a sequence.

The idea: sorting hashes finds all words that belong to a repeated sequence. Their fraction of the text
is an upper bound of the fraction that the loop finds. The loop therefore runs only for documents in
which the upper bound is above the threshold, and only over sequences that occur more than once.
"""

from __future__ import annotations

import numpy as np

from preprocess.filters import long_texts
from preprocess.filters.lines import Lines, split_at_runs_of_line_feeds, split_into_paragraphs
from preprocess.filters.long_texts import LongTextGrams, count_long_duplicates
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
        self._thresholds = [
            *(getattr(settings, f"max_top_{n}_gram") for n in TOP_SIZES),
            *(getattr(settings, f"max_duplicate_{n}_grams") for n in DUPLICATE_SIZES),
        ]

    def judge_group(self, group: TextGroup) -> Judgement:
        settings = self._settings
        judgement, num_characters = Judgement(group.num_documents), group.count_characters()
        judgement.drop(0, num_characters, num_characters == 0)
        grams: LongTextGrams | _RepeatedGrams
        if len(group.data) > long_texts.LONG_BYTES:
            grams = LongTextGrams(group)
            paragraphs = count_long_duplicates(group.data[grams.text_start : grams.text_end], min_feeds=2)
            lines = count_long_duplicates(group.data, min_feeds=1)
        else:
            words = find_words(group)
            paragraphs = count_all_duplicates(group, split_into_paragraphs(group, words))
            lines = count_all_duplicates(group, split_at_runs_of_line_feeds(group))
            grams = _RepeatedGrams(words, words.hash(group.data))
        parts = (
            (paragraphs, settings.max_duplicate_paragraphs, settings.max_duplicate_paragraph_characters),
            (lines, settings.max_duplicate_lines, settings.max_duplicate_line_characters),
        )
        for i, ((num_lines, num_duplicates, in_duplicates), max_lines, max_characters) in enumerate(parts):
            judgement.drop_above(1 + 2 * i, divide(num_duplicates, num_lines), max_lines)
            judgement.drop_above(2 + 2 * i, divide(in_duplicates, num_characters), max_characters)
        self._judge_grams(judgement, num_characters, grams)
        return judgement

    def _judge_grams(
        self, judgement: Judgement, num_characters: np.ndarray, grams: LongTextGrams | _RepeatedGrams
    ) -> None:
        for i, (size, threshold) in enumerate(zip((*TOP_SIZES, *DUPLICATE_SIZES), self._thresholds, strict=True)):
            if threshold is not None:
                grams.find(size)
                measure = grams.measure_top if size in TOP_SIZES else grams.measure_duplicates
                num_allowed = np.where(judgement.reasons < 0, threshold * num_characters, np.inf)
                judgement.drop_above(5 + i, divide(measure(num_allowed), num_characters), threshold)


def count_all_duplicates(group: TextGroup, lines: Lines) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lines of each text, those that are equal to an earlier one, and their characters: (D,) int64 each."""
    return lines.counts, *count_duplicates(group, lines)


def count_duplicates(group: TextGroup, lines: Lines) -> tuple[np.ndarray, np.ndarray]:
    """Return how many lines of each text are equal to an earlier one, and their characters: (D,) int64 each."""
    repeated = EqualElements(lines.hash(group.data), lines.documents).find_repeated()
    is_duplicate = np.zeros(len(lines.starts), bool)
    is_duplicate[repeated] = True
    lengths = np.where(is_duplicate, lines.count_characters(group), 0)
    return sum_between(is_duplicate, lines.firsts), sum_between(lengths, lines.firsts)


class _RepeatedGrams:
    """Sequences of words that occur more than once in a text, for one size after the other, from the smallest.

    A sequence can be repeated only if the shorter sequence that begins at the same word is repeated. So all
    words are searched for the smallest size only.
    """

    def __init__(self, words: Words, hashes: np.ndarray) -> None:
        """`hashes`: (W,) uint64, of the words."""
        self._firsts, self._lengths, self._documents, self._hashes = (
            words.firsts,
            words.lengths,
            words.documents,
            hashes,
        )
        self._text_ends = words.firsts[1:][self._documents]  # (W,) index after the last word of the text of each word
        self._sums = np.concatenate([[0], np.cumsum(words.lengths)])  # (W + 1,) characters of words before each
        self._starts = np.arange(len(hashes))  # (M,) first words of the sequences, ascending

    def find(self, size: int) -> None:
        """Find the sequences of `size` words, which must be larger than in the last call."""
        starts = self._starts[self._starts + size <= self._text_ends[self._starts]]
        hashes = np.zeros(len(starts), np.uint64)
        for i in range(size):
            hashes *= MULTIPLIER
            hashes += self._hashes[starts + i]
        equal = EqualElements(hashes, self._documents[starts])
        elements, self._groups = equal.number_large_groups()
        self._size, self._starts, self._repeated = size, starts[elements], starts[equal.find_repeated()]

    def measure_top(self, _: np.ndarray) -> np.ndarray:
        """Return the characters of the most frequent sequence of each text, times its count: (D,) int64.

        A space between words counts as a character. If several sequences have the same count, the first is used.
        """
        num_documents = len(self._firsts) - 1
        # If no sequence is repeated, the first sequence of the text is used.
        first_words, counts = self._firsts[:-1].copy(), np.ones(num_documents, np.int64)
        _, first_elements, sizes = np.unique(self._groups, return_index=True, return_counts=True)
        starts = self._starts[first_elements]
        documents = self._documents[starts]
        order = np.lexsort((starts, -sizes, documents))
        found, of_found = np.unique(documents[order], return_index=True)
        first_words[found], counts[found] = starts[order][of_found], sizes[order][of_found]
        measured = np.zeros(num_documents, np.int64)
        rows = np.flatnonzero(np.diff(self._firsts) >= self._size)
        characters = self._sums[first_words[rows] + self._size] - self._sums[first_words[rows]] + self._size - 1
        measured[rows] = characters * counts[rows]
        return measured

    def measure_duplicates(self, num_allowed: np.ndarray) -> np.ndarray:
        """Return the characters of the repeated sequences of each text, without overlaps: (D,) int64.

        If the result for a text cannot be above `num_allowed`, (D,), an upper bound is returned instead.
        """
        measured = self._bound()
        for document in np.flatnonzero(measured > num_allowed).tolist():
            measured[document] = self._count(document)
        return measured

    def _bound(self) -> np.ndarray:
        """Return the characters of all words that are in a sequence equal to an earlier one: (D,) int64."""
        if not len(self._repeated):
            return np.zeros(len(self._firsts) - 1, np.int64)
        is_inside = np.zeros(len(self._lengths), bool)
        for i in range(self._size):
            is_inside[self._repeated + i] = True
        return sum_between(np.where(is_inside, self._lengths, 0), self._firsts)

    def _count(self, document: int) -> int:
        first, last = np.searchsorted(self._starts, self._firsts[document : document + 2]).tolist()
        starts = self._starts[first:last]
        lengths = self._sums[starts + self._size] - self._sums[starts]
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
