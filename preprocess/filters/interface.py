"""The interface of filters: an object that gives a verdict on each document of a batch."""

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
    """The verdict of a filter on D documents.

    The verdict on a document must not depend on the other documents of the batch, because batches depend
    on the partition size. `values` must not depend on them either, to the last bit.
    """

    reasons: np.ndarray  # (D,) int8: why a document is dropped, an index into the filter's `reasons`, or KEEP
    values: np.ndarray | None = None  # (D,) float64: the measured value of a dropped document, NaN if it has none
    details: Mapping[int, str] = field(default_factory=dict)  # by row: text for messages, such as the language
    batch: pa.RecordBatch | None = None  # the D documents with edited texts or a new column `lang`; None: unchanged
    # The measured values of all D documents, (D,) float64, by reason; they help to choose a threshold. Rules that are
    # off, or that measure nothing, are left out.
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)  # how many edits or matches of each kind, for stats.json


class Filter(ABC):
    """A filter. Each process makes it once from its settings, and calls `judge` with every batch."""

    reasons: ClassVar[tuple[str, ...]]  # why a document can be dropped, in the order in which the rules are applied
    hides_examples: ClassVar[bool] = False  # if true, dropped documents are not shown: they contain secrets

    @abstractmethod
    def __init__(self, settings: FilterSettings) -> None:
        """Raises FolioError if a file that the settings name cannot be read, or has changed."""

    @abstractmethod
    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        """Return the verdict on the D documents of `batch`.

        `texts`: (D,), the plain texts of the documents: the column `text` without the marks of chats.
        """
