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
from preprocess.filters.words import TextGroup, Words


def count_sentences(group: TextGroup, words: Words, lines: Lines) -> np.ndarray:
    """Return the number of sentences of each line, at least 1: (L,) int64."""
    begins_word = words.have(WORD | SINGLE)
    is_full_stop = group.data[words.starts] == ord(".")
    is_end = words.have(TERMINAL) & ~begins_word & ~(is_full_stop & (words.lengths > 1))
    first_words, _ = lines.find_words(words)
    plain = np.flatnonzero(begins_word)  # the words at which a sentence can begin
    num_ends = np.concatenate([[0], np.cumsum(is_end)])  # before each word
    line_of_plain = np.searchsorted(lines.starts, words.starts[plain], side="right") - 1
    # A word begins a sentence if a mark ends one between it and the plain word before it, or the start of the line.
    before = num_ends[first_words[line_of_plain]]
    is_same_line = np.zeros(len(plain), bool)
    is_same_line[1:] = line_of_plain[1:] == line_of_plain[:-1]
    before[is_same_line] = num_ends[plain[:-1]][is_same_line[1:]]
    begins_sentence = num_ends[plain] > before
    return 1 + np.bincount(line_of_plain[begins_sentence], minlength=len(lines.starts))
