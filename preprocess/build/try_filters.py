"""Try filters: collect documents that each of them drops and keeps, with the measured values."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.build.filter_stats import describe_counts
from preprocess.build.plan import Plan
from preprocess.chats.marked_text import get_plain_texts
from preprocess.errors import one_line, printable
from preprocess.filters.catalog import load_filter
from preprocess.filters.counts import EXAMPLE_CHARACTERS, FilterCounts
from preprocess.filters.interface import Filter, Verdict
from preprocess.readers.records import Rejects
from preprocess.recipes.filter_settings import LIST_SEPARATOR
from preprocess.shards.files import JsonObject
from preprocess.shards.windows import keyed_hash
from preprocess.stages.pipeline import read_documents

COLUMN_CHARACTERS = 70  # of a text in one of the two columns that are printed
SEPARATOR = " │ "


@dataclass
class _Trial:
    """The results of one filter for the documents that it has read."""

    filter: Filter
    counts: FilterCounts = field(default_factory=FilterCounts)
    dropped: dict[str, list[JsonObject]] = field(default_factory=dict)  # examples by reason
    kept: list[JsonObject] = field(default_factory=list)


def try_filters(plan: Plan, num_documents: int, num_examples: int) -> list[JsonObject]:
    """Return an entry for each filter of the recipe: its counts, and examples of what it drops and keeps.

    Reads `num_documents` documents of partitions that are chosen by the seed, as an estimate does. Each
    filter reads only the documents that the filters before it have kept. `num_examples`: the maximum
    number of examples for each reason, and of kept documents. A filter that hides its examples, and the
    filters before it, have no examples. Control characters in texts are escaped. Raises FolioError if a
    file cannot be read.
    """
    specs = plan.recipe.filters
    trials = [_Trial(load_filter(spec)) for spec in specs]
    hiding = [number for number, trial in enumerate(trials) if trial.filter.hides_examples]
    first_shown = max(hiding, default=-1) + 1
    has_chats = plan.recipe.chat_columns is not None
    for batch in _read_documents(plan, num_documents):
        for number, trial in enumerate(trials):
            texts = get_plain_texts(batch.column("text"), has_chats=has_chats)
            verdict = trial.filter.judge(batch, texts)
            _count(trial, verdict)
            if number >= first_shown:
                _add_examples(trial, verdict, texts, num_examples)
            batch = (verdict.batch or batch).filter(pa.array(verdict.reasons < 0))
    return [
        {**describe_counts(spec, trial.counts), "dropped_examples": trial.dropped, "kept_examples": trial.kept}
        for spec, trial in zip(specs, trials, strict=True)
    ]


def _read_documents(plan: Plan, num_documents: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of together at most `num_documents` documents, before any filter."""
    recipe = dataclasses.replace(plan.recipe, filters=())
    order = np.argsort(keyed_hash(recipe.seed, np.arange(len(plan.partitions), dtype=np.uint64)), kind="stable")
    for number in order.tolist():
        spans = ((plan.input_files[span.file_number], span) for span in plan.partitions[number].spans)
        for batch, _ in read_documents(spans, recipe, Rejects(None), Counter()):
            yield batch.slice(0, num_documents)
            num_documents -= batch.num_rows
            if num_documents <= 0:
                return


def _count(trial: _Trial, verdict: Verdict) -> None:
    counts = trial.counts
    counts.documents += len(verdict.reasons)
    counts.counts = dict(Counter(counts.counts) + Counter(verdict.counts))
    for number, reason in enumerate(trial.filter.reasons):
        if num_dropped := int(np.count_nonzero(verdict.reasons == number)):
            counts.dropped[reason] = counts.dropped.get(reason, 0) + num_dropped


def _add_examples(trial: _Trial, verdict: Verdict, texts: pa.LargeStringArray, num_examples: int) -> None:
    for number, reason in enumerate(trial.filter.reasons):
        examples = trial.dropped.setdefault(reason, [])
        for row in np.flatnonzero(verdict.reasons == number)[: num_examples - len(examples)].tolist():
            value = math.nan if verdict.values is None else float(verdict.values[row])
            detail = {"detail": printable(verdict.details[row])} if row in verdict.details else {}
            examples.append({"text": _begin(texts, row), "value": _round(value), **detail})
    for row in np.flatnonzero(verdict.reasons < 0)[: num_examples - len(trial.kept)].tolist():
        example: JsonObject = {"text": _begin(texts, row)}
        example["values"] = {reason: _round(float(values[row])) for reason, values in verdict.measured.items()}
        if verdict.batch is not None and (edited := _begin(verdict.batch.column("text"), row)) != example["text"]:
            example["edited_text"] = edited
        trial.kept.append(example)


def _begin(texts: pa.LargeStringArray, row: int) -> str:
    """Return the first EXAMPLE_CHARACTERS characters of a text, with control characters escaped."""
    return printable(pc.utf8_slice_codeunits(texts.slice(row, 1), 0, EXAMPLE_CHARACTERS)[0].as_py())


def _round(value: float) -> float | None:
    """Return a value with five digits, or None if nothing was measured."""
    return None if math.isnan(value) else float(f"{value:.5g}")


def format_trial(entry: JsonObject) -> list[str]:
    """Return the lines that `preprocess filter try` prints for a filter, after its counts.

    The left column has the dropped documents, each after its reason and the measured value, and the right
    column the kept documents. The measured values of the kept documents follow.
    """
    settings = ", ".join(f"{key} {_format(value)}" for key, value in entry["settings"].items())
    left = [
        " ".join(filter(None, (reason, _format(example["value"]), example.get("detail")))) + f": {example['text']}"
        for reason, examples in entry["dropped_examples"].items()
        for example in examples
    ]
    right = [f"{i}. {each.get('edited_text', each['text'])}" for i, each in enumerate(entry["kept_examples"], start=1)]
    rows = itertools.zip_longest(["dropped", *left], ["kept", *right], fillvalue="")
    lines = [f"  {_cut(a):{COLUMN_CHARACTERS}}{SEPARATOR}{_cut(b)}".rstrip() for a, b in rows] if left or right else []
    values = [
        f"  kept {i}: " + ", ".join(f"{reason} {_format(value)}" for reason, value in each["values"].items())
        for i, each in enumerate(entry["kept_examples"], start=1)
        if each["values"]
    ]
    return [f"  settings: {settings}", *lines, *values, ""]


def _cut(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= COLUMN_CHARACTERS else f"{line[: COLUMN_CHARACTERS - 1]}…"


def _format(value: Any) -> str:
    """Return a setting or a measured value as text, empty for None."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return LIST_SEPARATOR.join(value)
    return "" if value is None else str(value)
