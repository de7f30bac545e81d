"""FineWeb's own quality rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6)."""

from __future__ import annotations

import numpy as np

from preprocess.filters import long_texts
from preprocess.filters.characters import TERMINAL, find_characters
from preprocess.filters.gopher_repetition import count_duplicates
from preprocess.filters.lines import LINE_FEED, Lines, split_at_line_feeds
from preprocess.filters.long_texts import EqualLines, find_outer_words, iter_whole_lines
from preprocess.filters.rules import Judgement, RuleFilter, divide
from preprocess.filters.spans import sum_between
from preprocess.filters.words import TextGroup, Words, find_words
from preprocess.recipes.filter_settings import FinewebQuality


class FinewebQualityFilter(RuleFilter):
    """Drops documents that are lists or whose lines are short, repeated, or do not end like sentences."""

    reasons = (
        "empty", "too_few_lines_end_with_punctuation", "too_many_short_lines", "duplicate_line_characters",
        "too_many_line_feeds",
    )  # fmt: skip

    def __init__(self, settings: FinewebQuality) -> None:
        self._settings = settings

    def judge_group(self, group: TextGroup) -> Judgement:
        settings, judgement = self._settings, Judgement(group.num_documents)
        is_long = len(group.data) > long_texts.LONG_BYTES
        counts = self._count_long(group) if is_long else self._count(group, find_words(group), None)
        num_lines, num_ends, num_short, num_feeds, num_words, in_duplicates = counts
        judgement.drop(0, num_lines, num_lines == 0)
        judgement.drop_below(1, divide(num_ends, num_lines), settings.min_punctuated_lines)
        judgement.drop_above(2, divide(num_short, num_lines), settings.max_short_lines)
        num_characters = group.count_characters() - num_feeds
        judgement.drop_above(3, divide(in_duplicates, num_characters), settings.max_duplicate_line_characters)
        judgement.drop_above(4, divide(num_feeds, num_words), settings.max_line_feeds_per_word)
        return judgement

    def _count(self, group: TextGroup, words: Words, equal: EqualLines | None) -> np.ndarray:
        """Return the lines of each text, those with final punctuation, the short ones, its line feeds, its words, and
        the characters of lines that are equal to an earlier one, unless lines are added to `equal`: (6, D) int64.
        """
        lines = split_at_line_feeds(group)
        first_words, after_last = lines.find_words(words)
        lines = lines.select(first_words < after_last)
        lengths = lines.count_characters(group)
        if equal:
            equal.add(lines.hash(group.data), lengths)
        in_duplicates = np.zeros(group.num_documents, np.int64) if equal else count_duplicates(group, lines)[1]
        return np.stack(
            [
                lines.counts,
                sum_between(_end_with_punctuation(group, lines), lines.firsts),
                sum_between(lengths <= self._settings.short_line_characters, lines.firsts),
                np.diff(np.searchsorted(np.flatnonzero(group.data == LINE_FEED), group.offsets)),
                words.counts,
                in_duplicates,
            ]
        )

    def _count_long(self, group: TextGroup) -> np.ndarray:
        """Return what `_count` does, for one long text, without the words of all of it in memory: (6, 1) int64."""
        total, equal = np.zeros((6, 1), np.int64), EqualLines()
        for part in iter_whole_lines(group):
            words, num_words = find_outer_words(part, split_at_line_feeds)
            counts = self._count(part, words, equal)
            counts[4] = num_words
            total += counts
        total[5] = equal.count_duplicates()[1]
        return total


def _end_with_punctuation(group: TextGroup, lines: Lines) -> np.ndarray:
    """Return whether the last character of each line ends a sentence: (L,) bool. No line is empty."""
    starts = lines.ends - 1
    for _ in range(3):  # a character has up to four bytes
        starts = starts - ((group.data[starts] & 0xC0) == 0x80)
    lengths = lines.ends - starts
    ends = np.cumsum(lengths)  # in the text that consists of the last characters
    last_characters = group.data[np.arange(int(lengths.sum())) - np.repeat(ends - lengths - starts, lengths)]
    is_terminal: np.ndarray = (find_characters(last_characters).kinds[ends - 1] & TERMINAL) != 0
    return is_terminal
