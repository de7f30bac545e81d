"""Mask personal data and keys, such as email addresses and card numbers, or drop the documents that contain any.

The problem: a model can repeat its training data word for word, including the address of a person or
a password.

The idea: one pass of RE2 finds the documents that may contain a match (pii_kinds.py). These are few.
Only they are searched with Python's regular expressions, which can express the exact patterns.

The cost: 60 to 90 MB/s on each core, and 600 MB/s if no document has a candidate (docs/pii.md).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import replace_column, view_text
from preprocess.filters.interface import KEEP, Filter, Verdict
from preprocess.filters.pii_kinds import KINDS, mask_text
from preprocess.recipes.filter_settings import PII_KINDS, Pii


class PiiFilter(Filter):
    """Replaces personal data by a mask such as `<EMAIL>`, or drops the documents that contain any."""

    reasons = PII_KINDS
    hides_examples = True

    def __init__(self, settings: Pii) -> None:
        self._drops = settings.policy == "drop"
        self._names = tuple(name for name in KINDS if name in settings.kinds)
        self._candidate = "|".join(f"(?:{KINDS[name].candidate})" for name in self._names)

    def judge(self, batch: pa.RecordBatch, texts: pa.LargeStringArray) -> Verdict:
        # The column has the marks of chats, which are never part of a match, so it can be edited as it is.
        marked = batch.column("text")
        reasons, num_found = np.full(len(marked), KEEP, np.int8), np.full(len(marked), np.nan)
        masked, totals = {}, Counter[str]()
        for row, names in self._find_candidates(marked).items():
            text, counts = mask_text(view_text(marked, row).to_pybytes(), names)
            if not counts:
                continue
            totals.update(counts)
            if self._drops:
                reasons[row], num_found[row] = PII_KINDS.index(next(iter(counts))), sum(counts.values())
            else:
                masked[row] = text
        if not masked:
            return Verdict(reasons, num_found, counts=totals)
        return Verdict(reasons, batch=replace_column(batch, "text", _replace_rows(marked, masked)), counts=totals)

    def _find_candidates(self, texts: pa.LargeStringArray) -> dict[int, tuple[str, ...]]:
        """Return the rows of texts that may contain a match, and the kinds that each may contain."""
        rows = _find_matches(texts, self._candidate)
        few = texts.take(pa.array(rows)) if len(rows) < len(texts) else texts
        found: dict[int, tuple[str, ...]] = {}
        for name in self._names:
            for row in rows[_find_matches(few, KINDS[name].candidate)].tolist():
                found[row] = (*found.get(row, ()), name)
        return found


def _find_matches(texts: pa.LargeStringArray, pattern: str) -> np.ndarray:
    """Return the indices of the texts that match `pattern`."""
    return np.flatnonzero(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))


def _replace_rows(texts: pa.LargeStringArray, new_texts: dict[int, bytes]) -> pa.LargeStringArray:
    """Return `texts` with other texts in some rows."""
    rows = np.sort(np.array(list(new_texts)))
    is_replaced = np.zeros(len(texts), bool)
    is_replaced[rows] = True
    replacements = pa.array([new_texts[row] for row in rows.tolist()], pa.large_binary()).cast(pa.large_string())
    return pc.replace_with_mask(texts, pa.array(is_replaced), replacements)
