"""Apply the filters of a recipe, one after the other, and count what they do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.chats.marked_text import get_plain_texts
from preprocess.filters.catalog import load_filter
from preprocess.filters.counts import EXAMPLE_CHARACTERS, MAX_EXAMPLES, Example, FilterCounts
from preprocess.filters.files import hash_filter_files
from preprocess.filters.interface import Filter, Verdict
from preprocess.recipes.schema import Recipe

# Called with the name of a filter, a reason, and the documents that are dropped for this reason.
CountDropped = Callable[[str, str, pa.RecordBatch], None]


def load_recipe_filters(recipe: Recipe) -> Recipe:
    """Return `recipe` with the hashes of the files of its filters, after loading all filters.

    Errors in these files are therefore reported before documents are read. Raises MisuseError if a
    file does not exist or a package is not installed, and FolioError if a file cannot be read.
    """
    recipe = hash_filter_files(recipe)
    for spec in recipe.filters:
        load_filter(spec)
    return recipe


class FilterChain:
    """The filters of a recipe, in order. Each reads only the documents that the filters before it have kept."""

    def __init__(self, recipe: Recipe) -> None:
        """Raises FolioError if a file of a filter cannot be read."""
        self._names = [spec.partition(":")[0] for spec in recipe.filters]
        self._filters = [load_filter(spec) for spec in recipe.filters]
        # The filters before a filter that hides its examples read the same secrets, so they have no examples either.
        hiding = [number for number, each in enumerate(self._filters) if each.hides_examples]
        self._num_without_examples = max(hiding, default=-1) + 1
        self._has_chats = recipe.chat_columns is not None
        self.counts = [FilterCounts() for _ in self._filters]

    def apply(
        self, batch: pa.RecordBatch, sides: np.ndarray, count_dropped: CountDropped
    ) -> tuple[pa.RecordBatch, np.ndarray]:
        """Return the documents of `batch` that all filters keep, possibly edited, and their sides, (D,) int8."""
        for number, (name, each, counts) in enumerate(zip(self._names, self._filters, self.counts, strict=True)):
            if not batch.num_rows:
                break
            texts = get_plain_texts(batch.column("text"), has_chats=self._has_chats)
            verdict = each.judge(batch, texts)
            _count(each, counts, batch, verdict)
            if number >= self._num_without_examples:
                _add_examples(each, counts, batch, texts, verdict)
            for reason in np.unique(verdict.reasons[verdict.reasons >= 0]).tolist():
                count_dropped(name, each.reasons[reason], batch.filter(pa.array(verdict.reasons == reason)))
            is_kept = verdict.reasons < 0
            if verdict.batch is not None:
                has_new_text = pc.not_equal(verdict.batch.column("text"), batch.column("text"))
                counts.changed += int((has_new_text.to_numpy(zero_copy_only=False) & is_kept).sum())
                batch = verdict.batch
            if not is_kept.all():
                batch, sides = batch.filter(pa.array(is_kept)), sides[is_kept]
            del texts, verdict
        return batch, sides


def _count(each: Filter, counts: FilterCounts, batch: pa.RecordBatch, verdict: Verdict) -> None:
    counts.documents += batch.num_rows
    counts.counts = dict(Counter(counts.counts) + Counter(verdict.counts))
    for number, reason in enumerate(each.reasons):
        if num_dropped := int(np.count_nonzero(verdict.reasons == number)):
            counts.dropped[reason] = counts.dropped.get(reason, 0) + num_dropped


def _add_examples(
    each: Filter, counts: FilterCounts, batch: pa.RecordBatch, texts: pa.LargeStringArray, verdict: Verdict
) -> None:
    for number, reason in enumerate(each.reasons):
        rows = np.flatnonzero(verdict.reasons == number)
        if len(rows):
            counts.add_examples(reason, _make_examples(batch, texts, verdict, rows))


def _make_examples(
    batch: pa.RecordBatch, texts: pa.LargeStringArray, verdict: Verdict, rows: np.ndarray
) -> list[Example]:
    """Return the first documents of `rows`, by source and position, as examples."""
    sources, positions = batch.column("source").to_numpy(), batch.column("position").to_numpy()
    first = rows[np.lexsort((positions[rows], sources[rows]))[:MAX_EXAMPLES]]
    examples = []
    for row in first.tolist():
        text = pc.utf8_slice_codeunits(texts.slice(row, 1), 0, EXAMPLE_CHARACTERS)[0].as_py()
        value = math.nan if verdict.values is None else float(verdict.values[row])
        examples.append(
            Example(
                int(sources[row]),
                int(positions[row]),
                text,
                None if math.isnan(value) else value,
                verdict.details.get(row, ""),
            )
        )
    return examples
