"""Drop documents by their number of words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.recipes.filter_settings import WordCount


class WordCountFilter(Filter):
    """Drops documents with too few or too many words, which are separated by white space."""

    reasons = ("too_few_words", "too_many_words")

    def __init__(self, settings: WordCount) -> None:
        self._settings = settings

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        counts = pc.count_substring_regex(texts, r"\S+").to_numpy().astype(np.float64)
        reasons = np.full(len(texts), KEEP, np.int8)
        if self._settings.max_words is not None:
            reasons[counts > self._settings.max_words] = 1
        if self._settings.min_words is not None:
            reasons[counts < self._settings.min_words] = 0
        return Verdict(reasons, counts)
