"""What a filter is: an object that gives a verdict about each document of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa

from preprocess.recipes.filter_settings import FilterSettings

KEEP = -1


@dataclass(frozen=True)
class Verdict:
    """The verdict of a filter about D documents.

    A verdict about a document must not depend on the other documents of the batch, because batches
    depend on the partition size. The same holds for `values`, to the last bit.
    """

    reasons: np.ndarray  # (D,) int8: index into the filter's reasons of why a document is dropped, or KEEP
    values: np.ndarray | None = None  # (D,) float64: the measured value of a dropped document, NaN if it has none
    details: Mapping[int, str] = field(default_factory=dict)  # of some rows: what the value does not say, for messages
    batch: pa.RecordBatch | None = None  # the D documents with edited texts or a new column `lang`; None: unchanged
    # The values of rules for all D documents, (D,) float64, by reason, for people who look for a limit. Rules that
    # are off, or that measure nothing, are left out.
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)  # what was edited in how many places, for the statistics


class Filter(ABC):
    """A filter. It is made once in each process, from its settings, and is called with every batch."""

    reasons: ClassVar[tuple[str, ...]]  # why a document can be dropped, in the order in which the rules are applied
    hides_examples: ClassVar[bool] = False  # if true, dropped documents are not shown: they contain secrets

    @abstractmethod
    def __init__(self, settings: FilterSettings) -> None:
        """Raises FolioError if a file that the settings name cannot be read, or has changed."""

    @abstractmethod
    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        """Return the verdict about the documents of `batch`.

        `texts`: (D,), the plain texts of the documents. They are the column `text`, except that the
        marks of chats are removed.
        """
