"""Filters that consist of rules: a document is dropped by the first rule that it breaks."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import pyarrow as pa

from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.filters.words import TextGroup, iter_text_groups


class Judgement:
    """The reasons and measured values of D documents, to which one rule after the other is applied."""

    def __init__(self, num_documents: int) -> None:
        self.reasons = np.full(num_documents, KEEP, np.int8)
        self.values = np.full(num_documents, np.nan)

    def drop(self, reason: int, values: np.ndarray, is_dropped: np.ndarray) -> None:
        """Drop the documents for which `is_dropped`, (D,) bool, is true and which no earlier rule has dropped."""
        rows = (self.reasons == KEEP) & is_dropped
        self.reasons[rows], self.values[rows] = reason, values[rows]

    def drop_above(self, reason: int, values: np.ndarray, limit: float | None) -> None:
        """Drop the documents whose value is larger than `limit`, if there is a limit."""
        if limit is not None:
            self.drop(reason, values, values > limit)

    def drop_below(self, reason: int, values: np.ndarray, limit: float | None) -> None:
        """Drop the documents whose value is smaller than `limit`, if there is a limit."""
        if limit is not None:
            self.drop(reason, values, values < limit)


def divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Return the ratios as float64, and 0 if the denominator is 0."""
    ratios: np.ndarray = numerators / np.maximum(denominators, 1)
    return ratios


class RuleFilter(Filter):
    """A filter that examines groups of documents of about a megabyte."""

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        judgement = Judgement(len(texts))
        for group in iter_text_groups(texts):
            of_group = self.judge_group(group)
            judgement.reasons[group.rows], judgement.values[group.rows] = of_group.reasons, of_group.values
        return Verdict(judgement.reasons, judgement.values)

    @abstractmethod
    def judge_group(self, group: TextGroup) -> Judgement:
        """Return the judgement about the documents of a group."""
