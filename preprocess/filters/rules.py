"""Filters that consist of rules: a document is dropped by the first rule that it violates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.filters.words import TextGroup, iter_text_groups


class Judgement:
    """The reasons and measured values of D documents while rules are applied, one after another."""

    def __init__(self, num_documents: int) -> None:
        self.reasons = np.full(num_documents, KEEP, np.int8)
        self.values = np.full(num_documents, np.nan)
        self.measured: dict[int, np.ndarray] = {}  # (D,) values by reason, of the rules that have been applied

    def drop(self, reason: int, values: np.ndarray, is_dropped: np.ndarray) -> None:
        """Drop the documents for which `is_dropped`, (D,) bool, is true, unless an earlier rule has dropped them.

        `values`: (D,), the measured values.
        """
        rows = (self.reasons == KEEP) & is_dropped
        self.measured[reason] = values
        self.reasons[rows], self.values[rows] = reason, values[rows]

    def drop_above(self, reason: int, values: np.ndarray, threshold: float | None) -> None:
        """Drop the documents whose value is larger than `threshold`. None turns the rule off."""
        if threshold is not None:
            self.drop(reason, values, values > threshold)

    def drop_below(self, reason: int, values: np.ndarray, threshold: float | None) -> None:
        """Drop the documents whose value is smaller than `threshold`. None turns the rule off."""
        if threshold is not None:
            self.drop(reason, values, values < threshold)


def divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Return the ratios as float64, and 0 if the denominator is 0."""
    ratios: np.ndarray = numerators / np.maximum(denominators, 1)
    return ratios


def join_judgements(judgements: Sequence[Judgement], reasons: Sequence[str]) -> Verdict:
    """Return the verdict on the documents of several groups. `reasons`: of the filter."""
    if not judgements:
        return Verdict(np.empty(0, np.int8), np.empty(0))
    measured = {
        reasons[number]: np.concatenate([each.measured[number] for each in judgements]).astype(np.float64)
        for number in judgements[0].measured
    }
    return Verdict(
        np.concatenate([each.reasons for each in judgements]),
        np.concatenate([each.values for each in judgements]),
        measured=measured,
    )


class RuleFilter(Filter):
    """A filter that examines groups of documents of about a megabyte."""

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        judgements = [self.judge_group(group) for group in iter_text_groups(texts)]
        return join_judgements(judgements, self.reasons)

    @abstractmethod
    def judge_group(self, group: TextGroup) -> Judgement:
        """Return the judgement on the documents of a group."""
