"""Drop documents to which a classifier gives a low score.

`preprocess filter train` trains the classifier on two sets of documents: examples to keep and
examples to drop. DCLM (Li et al. 2024, arXiv 2406.11794) and FineWeb-Edu filter the web in this way.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocess.filters.classifier_model import read_classifier
from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.recipes.filter_settings import Classifier

LOW_SCORE = 0  # index of ClassifierFilter.reasons


class ClassifierFilter(Filter):
    """Drops documents whose score is below the threshold."""

    reasons = ("low_score",)

    def __init__(self, settings: Classifier) -> None:
        """Raises FolioError if the file of the model is damaged or is another file."""
        self._min_score = settings.min_score
        self._model = read_classifier(Path(settings.model), settings.sha256)

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        scores = self._model.score(texts)
        is_dropped = scores < self._min_score
        reasons = np.where(is_dropped, LOW_SCORE, KEEP).astype(np.int8)
        return Verdict(reasons, np.where(is_dropped, scores, np.nan), measured={"low_score": scores})
