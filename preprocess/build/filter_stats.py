"""The entry of stats.json about filters: how many documents each filter has read and dropped, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.shard_layout import compute_position_offsets
from preprocess.errors import printable, shorten
from preprocess.filters.catalog import load_filter
from preprocess.filters.counts import Example, FilterCounts
from preprocess.inputs.input_files import InputFile
from preprocess.recipes.filter_settings import leave_out_folders, parse_filter
from preprocess.shards.files import JsonObject


def describe_filters(corpus: PreparedCorpus, input_files: Sequence[InputFile]) -> JsonObject:
    """Return the entry `filters` of stats.json, or an empty object if the recipe has no filters."""
    if not corpus.recipe.filters:
        return {}
    position_offsets = compute_position_offsets([receipt.num_positions for receipt in corpus.receipts])
    totals = [FilterCounts() for _ in corpus.recipe.filters]
    for receipt, (first_file, offsets) in zip(corpus.receipts, position_offsets, strict=True):
        move = _make_move(first_file, offsets.tolist())
        for total, counts in zip(totals, receipt.filters, strict=True):
            total.add(counts, move)
    return {
        "filters": [
            {**describe_counts(spec, counts), "examples": _describe_examples(counts, input_files)}
            for spec, counts in zip(corpus.recipe.filters, totals, strict=True)
        ]
    }


def describe_counts(spec: str, counts: FilterCounts) -> JsonObject:
    """Return the name, the settings and the counts of a filter, without examples."""
    name, settings = parse_filter(leave_out_folders(spec))
    return {
        "name": name,
        "settings": dataclasses.asdict(settings),
        "documents": counts.documents,
        "dropped": {reason: counts.dropped.get(reason, 0) for reason in load_filter(spec).reasons},
        "changed": counts.changed,
        "counts": counts.counts,
    }


def _make_move(first_file: int, offsets: Sequence[int]) -> Callable[[Example], Example]:
    def move(example: Example) -> Example:
        return dataclasses.replace(example, position=example.position + offsets[example.source - first_file])

    return move


def _describe_examples(counts: FilterCounts, input_files: Sequence[InputFile]) -> JsonObject:
    return {
        reason: [_describe_example(example, input_files) for example in examples]
        for reason, examples in counts.examples.items()
    }


def _describe_example(example: Example, input_files: Sequence[InputFile]) -> JsonObject:
    return {
        "file": input_files[example.source].name,
        "document": example.position,
        "text": printable(example.text),
        "value": example.value,
        **({"detail": printable(example.detail)} if example.detail else {}),
    }


def format_filter_counts(filters: Sequence[JsonObject]) -> list[str]:
    """Return a line for each filter of stats.json: what it read, dropped for each reason, found and edited."""
    lines = []
    for entry in filters:
        num_read, dropped = entry["documents"], entry["dropped"]
        num_dropped = sum(dropped.values())
        reasons = ", ".join(f"{shorten(reason)} {count:,}" for reason, count in dropped.items() if count)
        share = f" ({num_dropped / num_read:.1%})" if num_read else ""
        counts = ", ".join(f"{shorten(key)} {count:,}" for key, count in entry["counts"].items())
        found = f"; found {counts}" if counts else ""
        changed = f"; {entry['changed']:,} edited" if entry["changed"] else ""
        lines.append(
            f"filter      {shorten(entry['name'])}: read {num_read:,}, dropped {num_dropped:,}{share}"
            f"{': ' + reasons if reasons else ''}{found}{changed}"
        )
    return lines
