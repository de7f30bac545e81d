"""FineWeb's own quality rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6)."""

from __future__ import annotations

import numpy as np

from preprocess.filters.characters import TERMINAL, find_characters
from preprocess.filters.gopher_repetition import count_duplicates
from preprocess.filters.lines import LINE_FEED, Lines, split_at_line_feeds
from preprocess.filters.rules import Judgement, RuleFilter, divide
from preprocess.filters.spans import sum_between
from preprocess.filters.words import TextGroup, find_words
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
        settings, words = self._settings, find_words(group)
        judgement, lines = Judgement(group.num_documents), split_at_line_feeds(group)
        first_words, after_last = lines.find_words(words)
        lines = lines.select(first_words < after_last)
        judgement.drop(0, lines.counts, lines.counts == 0)
        num_ends = sum_between(_end_with_punctuation(group, lines), lines.firsts)
        judgement.drop_below(1, divide(num_ends, lines.counts), settings.min_punctuated_lines)
        num_short = sum_between(lines.count_characters(group) <= settings.short_line_characters, lines.firsts)
        judgement.drop_above(2, divide(num_short, lines.counts), settings.max_short_lines)
        num_feeds = np.diff(np.searchsorted(np.flatnonzero(group.data == LINE_FEED), group.offsets))
        _, in_duplicates = count_duplicates(group, lines)
        num_characters = group.count_characters() - num_feeds
        judgement.drop_above(3, divide(in_duplicates, num_characters), settings.max_duplicate_line_characters)
        judgement.drop_above(4, divide(num_feeds, words.counts), settings.max_line_feeds_per_word)
        return judgement


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
