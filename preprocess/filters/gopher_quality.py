"""The quality rules of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1.1), as FineWeb applies them."""

from __future__ import annotations

import numpy as np

from preprocess.filters import long_texts
from preprocess.filters.characters import ALPHA, SYMBOL
from preprocess.filters.lines import Lines, split_lines
from preprocess.filters.long_texts import ANY_LINE_END, find_outer_words, iter_whole_lines
from preprocess.filters.rules import Judgement, RuleFilter, divide
from preprocess.filters.spans import hash_spans, sum_between
from preprocess.filters.words import TextGroup, Words, find_words, iter_word_windows
from preprocess.recipes.filter_settings import GopherQuality

ELLIPSIS = "…".encode()
DOTS = b"..."
BULLET = "•".encode()


class GopherQualityFilter(RuleFilter):
    """Drops documents whose words, symbols and lines are not those of prose."""

    reasons = (
        "too_few_words", "too_many_words", "words_too_short", "words_too_long", "too_many_hash_signs",
        "too_many_ellipses", "too_many_bullet_lines", "too_many_lines_end_with_ellipsis", "too_few_alphabetic_words",
        "too_few_stop_words",
    )  # fmt: skip

    def __init__(self, settings: GopherQuality) -> None:
        self._settings = settings
        stop_words = [word.encode() for word in dict.fromkeys(settings.stop_words)]
        data, lengths = np.frombuffer(b"".join(stop_words), np.uint8), np.array([len(word) for word in stop_words], int)
        self._is_stop_length = np.zeros(int(lengths.max(initial=0)) + 2, bool)  # the last is for all longer words
        self._is_stop_length[lengths] = True
        self._stop_hashes = np.sort(hash_spans(data, np.cumsum(lengths) - lengths, lengths))

    def judge_group(self, group: TextGroup) -> Judgement:
        settings, judgement = self._settings, Judgement(group.num_documents)
        is_long = len(group.data) > long_texts.LONG_BYTES
        of_words, of_lines, has_stop_words = self._count_long(group) if is_long else self._count(group)
        num_words, num_plain, in_plain, num_hashes, num_ellipses, num_alphabetic = of_words
        num_lines, num_bullets, num_ends = of_lines
        judgement.drop_below(0, num_plain, settings.min_words)
        judgement.drop_above(1, num_plain, settings.max_words)
        mean_length = divide(in_plain, num_plain)
        judgement.drop_below(2, mean_length, settings.min_mean_word_length)
        judgement.drop_above(3, mean_length, settings.max_mean_word_length)
        judgement.drop_above(4, divide(num_hashes, num_words), settings.max_symbol_ratio)
        judgement.drop_above(5, divide(num_ellipses, num_words), settings.max_symbol_ratio)
        judgement.drop_above(6, divide(num_bullets, num_lines), settings.max_bullet_lines)
        judgement.drop_above(7, divide(num_ends, num_lines), settings.max_ellipsis_lines)
        judgement.drop_below(8, divide(num_alphabetic, num_words), settings.min_alphabetic_words)
        judgement.drop_below(9, has_stop_words.sum(axis=1), settings.min_stop_words)
        return judgement

    def _count(self, group: TextGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return counts of the words and lines of each text, (6, D) and (3, D), and which stop words it has, (D, S)."""
        words = find_words(group)
        return count_words(group, words), count_lines(group, words), self._find_stop_words(group, words)

    def _count_long(self, group: TextGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what `_count` does, for one long text, without the words of all of it in memory."""
        of_words, of_lines = np.zeros((6, 1), np.int64), np.zeros((3, 1), np.int64)
        has_stop_words = np.zeros((1, len(self._stop_hashes)), bool)
        for part in iter_whole_lines(group, ANY_LINE_END):
            of_lines += count_lines(part, find_outer_words(part, split_lines)[0])
            for window in iter_word_windows(part):
                words = find_words(window)
                of_words += count_words(window, words)
                has_stop_words |= self._find_stop_words(window, words)
        return of_words, of_lines, has_stop_words

    def _find_stop_words(self, group: TextGroup, words: Words) -> np.ndarray:
        """Return which of the S stop words each text has: (D, S) bool."""
        found = np.zeros((group.num_documents, len(self._stop_hashes)), bool)
        if not len(self._stop_hashes):
            return found
        lengths = words.ends - words.starts
        rows = np.flatnonzero(self._is_stop_length[np.minimum(lengths, len(self._is_stop_length) - 1)])
        hashes = hash_spans(group.data, words.starts[rows], lengths[rows])
        numbers = np.minimum(np.searchsorted(self._stop_hashes, hashes), len(self._stop_hashes) - 1)
        is_stop_word = self._stop_hashes[numbers] == hashes
        documents = np.searchsorted(words.firsts, rows[is_stop_word], side="right") - 1
        found[documents, numbers[is_stop_word]] = True
        return found


def count_words(group: TextGroup, words: Words) -> np.ndarray:
    """Return six numbers for each text: (6, D) int64.

    They are the numbers of words, of words that are not symbols, of the characters of these, of hash
    signs, of ellipses, and of words that contain a letter.
    """
    is_symbol = words.have(SYMBOL)
    return np.stack(
        [
            words.counts,
            sum_between(~is_symbol, words.firsts),
            sum_between(np.where(is_symbol, 0, words.lengths), words.firsts),
            count_hash_signs(group, words),
            count_ellipses(group, words),
            sum_between(words.have(ALPHA), words.firsts),
        ]
    )


def count_lines(group: TextGroup, words: Words) -> np.ndarray:
    """Return the number of lines of each text, and the two that `count_marked_lines` returns: (3, D) int64."""
    lines = split_lines(group)
    return np.stack([lines.counts, *count_marked_lines(group, words, lines)])


def count_hash_signs(group: TextGroup, words: Words) -> np.ndarray:
    """Return the number of # in each text: (D,) int64. Several in a row are one word of that length."""
    return sum_between(np.where(group.data[words.starts] == ord("#"), words.lengths, 0), words.firsts)


def count_ellipses(group: TextGroup, words: Words) -> np.ndarray:
    """Return the number of … and of three full stops in a row in each text: (D,) int64."""
    dots = np.where(group.data[words.starts] == ord("."), words.lengths // len(DOTS), 0)
    return sum_between(dots + np.where(begin_with(group, words, ELLIPSIS), words.lengths, 0), words.firsts)


def begin_with(group: TextGroup, words: Words, character: bytes) -> np.ndarray:
    """Return whether each word begins with a character of three bytes: (W,) bool."""
    found = group.data[words.starts] == character[0]
    rows = np.flatnonzero(found)
    starts = words.starts[rows]
    found[rows] = (group.data[starts + 1] == character[1]) & (group.data[starts + 2] == character[2])
    return found


def count_marked_lines(group: TextGroup, words: Words, lines: Lines) -> tuple[np.ndarray, np.ndarray]:
    """Return how many lines of each text begin with - or •, and how many end with an ellipsis: (D,) int64 each.

    White space at the ends of lines is ignored. So these are properties of their first and last words.
    """
    first_words, after_last = lines.find_words(words)
    has_words = first_words < after_last
    is_bullet, is_end = np.zeros(len(has_words), bool), np.zeros(len(has_words), bool)
    rows = np.flatnonzero(has_words)
    begins = (group.data[words.starts] == ord("-")) | begin_with(group, words, BULLET)
    is_bullet[rows] = begins[first_words[rows]]
    ends = words.ends[after_last[rows] - 1]
    is_end[rows] = _ends_with(group.data, lines.starts[rows], ends, DOTS) | _ends_with(
        group.data, lines.starts[rows], ends, ELLIPSIS
    )
    return sum_between(is_bullet, lines.firsts), sum_between(is_end, lines.firsts)


def _ends_with(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, mark: bytes) -> np.ndarray:
    """Return whether each span of bytes ends with `mark`: (S,) bool."""
    found = ends - starts >= len(mark)
    rows = np.flatnonzero(found)
    for i, byte in enumerate(mark):
        found[rows] &= data[ends[rows] - len(mark) + i] == byte
    return found
