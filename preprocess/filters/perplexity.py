"""Drop documents that a trained model predicts too well or too badly.

Text that a model finds easy to predict is often repeated or a list, and text that it finds hard is often noise or
in another language. CCNet (Wenzek et al. 2020, arXiv 1911.00359) filters the web by the perplexity of a
model that was trained on Wikipedia.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from preprocess.documents import view_text
from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.filters.run_models import load_scorer
from preprocess.recipes.filter_settings import Perplexity

TOO_LOW, TOO_HIGH, NOT_ENCODED = 0, 1, 2  # indices of PerplexityFilter.reasons


class PerplexityFilter(Filter):
    """Drops documents whose bits per byte are not in a range."""

    reasons = ("bits_too_low", "bits_too_high", "cannot_be_encoded")

    def __init__(self, settings: Perplexity) -> None:
        """Raises MisuseError if the run or PyTorch is missing, and FolioError if the checkpoint is damaged."""
        self._settings = settings
        self._scorer = load_scorer(settings.run, settings.sha256)

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        # One document after the other: in a batch of several, the last bits of a result depend on the others.
        measured = [self._scorer.measure(self._begin(texts, row)) for row in range(len(texts))]
        bits = np.array([np.nan if value is None else value for value in measured], np.float64)
        reasons = np.where(np.isnan(bits), NOT_ENCODED, KEEP).astype(np.int8)
        if self._settings.max_bits is not None:
            reasons[bits > self._settings.max_bits] = TOO_HIGH
        if self._settings.min_bits is not None:
            reasons[bits < self._settings.min_bits] = TOO_LOW
        return Verdict(reasons, bits, measured={"bits_per_byte": bits})

    def _begin(self, texts: pa.LargeStringArray, row: int) -> str:
        """Return the first `max_bytes` bytes of a text, without a character that this cuts."""
        data = view_text(texts, row)
        return str(data.slice(0, min(self._settings.max_bytes, data.size)), "utf-8", "ignore")
