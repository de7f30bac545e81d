"""Drop documents that contain a word or phrase of a list, as C4 does with a list of obscene words."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.errors import FolioError, shorten
from preprocess.filters.characters import SINGLE, find_kind
from preprocess.filters.files import read_word_list
from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.recipes.filter_settings import BadWords

WORDS_PER_PATTERN = 300  # Arrow's regular expressions have a limited size
NO_WORD_CHARACTER = r"[^\pL\pN_]"


class BadWordsFilter(Filter):
    """Drops documents that contain a word of the list, in upper or lower case.

    The characters before and after the word must not be letters, digits or underscores. A word that
    consists of letters of a script without spaces, such as Chinese or Thai, is found anywhere.
    """

    reasons = ("bad_word",)

    def __init__(self, settings: BadWords) -> None:
        words = list(dict.fromkeys(read_word_list("bad_words", settings.file, settings.sha256)))
        if not words:
            raise FolioError(
                f"the file {shorten(settings.file)} of the filter bad_words has no words; add one per line"
            )
        anywhere = {word for word in words if all(find_kind(ord(character)) & SINGLE for character in word)}
        separate = [word for word in words if word not in anywhere]
        self._patterns = [
            *(_join(part) for part in _cut([word for word in words if word in anywhere])),
            *(f"(?:^|{NO_WORD_CHARACTER}){_join(part)}(?:{NO_WORD_CHARACTER}|$)" for part in _cut(separate)),
        ]

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        is_found = np.zeros(len(texts), bool)
        for pattern in self._patterns:
            found = pc.match_substring_regex(texts, pattern, ignore_case=True)
            is_found |= found.to_numpy(zero_copy_only=False).astype(bool)
        return Verdict(np.where(is_found, 0, KEEP).astype(np.int8))


def _cut(words: list[str]) -> list[list[str]]:
    return [words[start : start + WORDS_PER_PATTERN] for start in range(0, len(words), WORDS_PER_PATTERN)]


def _join(words: list[str]) -> str:
    """Return a pattern for any of the words. All characters that are not letters, digits or spaces are escaped."""
    escaped = (re.sub(r"([^\w\s])", r"\\\1", word) for word in words)
    return f"(?:{'|'.join(escaped)})"
