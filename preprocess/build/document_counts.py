"""Counts the documents, tokens and bytes of text of a build, by split, language and author."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from preprocess.build.distinct_values import DistinctValues
from preprocess.build.receipts import PartitionValues
from preprocess.shards.format import CONTROL_FIELDS, SPLITS

TOTALS = ("documents", "tokens", "text_bytes")
NUM_YEARS = 10_000


class DocumentCounts:
    """Counts over the documents of a build. Memory grows only with distinct lengths and values."""

    def __init__(self) -> None:
        self.splits = {split: dict.fromkeys(TOTALS, 0) for split in SPLITS}
        self.lengths: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}  # tokens -> documents
        self.languages = ValueCounts("lang")
        self.authors = {name: ValueCounts(name) for name in CONTROL_FIELDS}
        self.num_u2581 = 0  # documents that contain the character U+2581

    def begin_partition(self, values: PartitionValues) -> None:
        """Prepare to count the documents of another partition, whose table refers to `values`."""
        self.languages.begin_partition([*values.lang, "unknown"])  # the last value is that of index -1
        for name, texts in (("author", values.author), ("city", values.city)):
            self.authors[name].begin_partition(texts)
        self.authors["year"].begin_partition(range(NUM_YEARS))

    def add(self, split: str, documents: np.ndarray, lengths: np.ndarray) -> None:
        """Count documents of the current partition that are in `split`.

        `documents`: (D,) of DOCUMENT_DTYPE. `lengths`: (D,) tokens of each. Raises FolioError if
        there are too many different languages, authors, cities or years.
        """
        text_bytes = documents["text_bytes"]
        sums = len(documents), int(lengths.sum(dtype=np.int64)), int(text_bytes.sum(dtype=np.int64))
        for key, value in zip(TOTALS, sums, strict=True):
            self.splits[split][key] += value
        different_lengths, counts = np.unique(lengths, return_counts=True)
        self.lengths[split].update(dict(zip(different_lengths.tolist(), counts.tolist(), strict=True)))
        self.languages.add(documents["lang"], lengths, text_bytes)
        for name in CONTROL_FIELDS:
            has_value = documents[name] >= 0
            if has_value.any():
                self.authors[name].add(documents[name][has_value], lengths[has_value], text_bytes[has_value])
        self.num_u2581 += int(documents["has_u2581"].sum())

    def total(self, key: str) -> int:
        """Return the sum of "documents", "tokens" or "text_bytes" over both splits."""
        return sum(totals[key] for totals in self.splits.values())


class ValueCounts:
    """The number of documents, tokens and bytes of text for each value of a field."""

    def __init__(self, field: str) -> None:
        self._values = DistinctValues(field)
        self._totals = np.zeros((0, len(TOTALS)), np.int64)  # of each value; the last rows are not used yet

    def begin_partition(self, values: Sequence[str | int]) -> None:
        """Prepare to add documents that refer to their values by the index in `values`."""
        self._partition_values = values
        self._numbers = np.full(len(values), -1)  # of the partition's values in those of the build; -1: not counted yet

    def add(self, indices: np.ndarray, lengths: np.ndarray, text_bytes: np.ndarray) -> None:
        """Count D documents. Raises FolioError if there are too many different values.

        `indices`: (D,), the value of each document as an index in the values of the partition.
        `lengths`: (D,), in tokens. `text_bytes`: (D,).
        """
        distinct, inverse, counts = np.unique(indices, return_inverse=True, return_counts=True)
        # bincount sums floats. The sums are exact because they are smaller than 2**53.
        sums = [np.bincount(inverse, weights=weights, minlength=len(distinct)) for weights in (lengths, text_bytes)]
        new = distinct[self._numbers[distinct] < 0]
        self._numbers[new] = self._values.number([str(self._partition_values[i]) for i in new.tolist()])
        if len(self._values) > len(self._totals):
            padding = np.zeros((2 * len(self._values) - len(self._totals), len(TOTALS)), np.int64)
            self._totals = np.concatenate([self._totals, padding])
        # A language may really be called "unknown", so a number may occur twice.
        np.add.at(self._totals, self._numbers[distinct], np.stack([counts, *sums], axis=1).astype(np.int64))

    def __len__(self) -> int:
        return len(self._values)

    def num_documents(self) -> int:
        """Return the number of documents that were added."""
        return int(self._totals[:, 0].sum())

    def most_frequent(self, max_values: int) -> dict[str, dict[str, int]]:
        """Return the totals of the `max_values` values with the most documents, by value.

        The values are in descending order of their documents; equal counts are sorted by value.
        """
        totals = self._totals[: len(self._values)]
        order = sorted(zip((-totals[:, 0]).tolist(), self._values, range(len(totals)), strict=True))[:max_values]
        return {value: dict(zip(TOTALS, totals[i].tolist(), strict=True)) for _, value, i in order}
