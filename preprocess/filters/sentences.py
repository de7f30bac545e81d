"""Count the sentences of lines.

A sentence ends at a word that is a mark such as . ! ? or 。, which other punctuation may follow. The next
sentence begins at the next word that begins with a letter or digit. Several full stops in a row do not
end a sentence. Abbreviations are not recognised: `Mr. Smith` counts as two sentences, and so does
`U.S.` with a word after it.
"""

from __future__ import annotations

import numpy as np

from preprocess.filters.characters import SINGLE, TERMINAL, WORD
from preprocess.filters.lines import Lines
from preprocess.filters.words import TextGroup, Words, find_words, iter_word_windows


def count_sentences(group: TextGroup, words: Words, lines: Lines) -> np.ndarray:
    """Return the number of sentences of each line, at least 1: (L,) int64."""
    plain, num_ends = _find_ends(group, words)
    first_words, _ = lines.find_words(words)
    line_of_plain = np.searchsorted(lines.starts, words.starts[plain], side="right") - 1
    # A word begins a sentence if a mark ends one between it and the plain word before it, or the start of the line.
    before = num_ends[first_words[line_of_plain]]
    is_same_line = np.zeros(len(plain), bool)
    is_same_line[1:] = line_of_plain[1:] == line_of_plain[:-1]
    before[is_same_line] = num_ends[plain[:-1]][is_same_line[1:]]
    begins_sentence = num_ends[plain] > before
    return 1 + np.bincount(line_of_plain[begins_sentence], minlength=len(lines.starts))


def count_sentences_of_line(line: TextGroup) -> int:
    """Return the number of sentences of a text that is one long line, without all of its words in memory."""
    num_sentences, is_ended = 1, False  # whether a mark follows the last plain word so far
    for window in iter_word_windows(line):
        plain, num_ends = _find_ends(window, find_words(window))
        before = num_ends[plain]
        if len(plain):
            num_sentences += bool(is_ended or before[0]) + int(np.count_nonzero(np.diff(before)))
            is_ended = False
        is_ended |= bool(num_ends[-1] > (before[-1] if len(plain) else 0))
    return num_sentences


def _find_ends(group: TextGroup, words: Words) -> tuple[np.ndarray, np.ndarray]:
    """Return the words at which a sentence can begin, (P,), and how many words before each, and before the end of the
    texts, end a sentence: (W + 1,), both int64.
    """
    begins_word = words.have(WORD | SINGLE)
    is_full_stop = group.data[words.starts] == ord(".")
    is_end = words.have(TERMINAL) & ~begins_word & ~(is_full_stop & (words.lengths > 1))
    return np.flatnonzero(begins_word), np.concatenate([[0], np.cumsum(is_end)])
