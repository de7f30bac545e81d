"""Sources cut into partitions, each what one task reads.

Partitions are a matter of speed only: no byte of a build depends on where they begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from preprocess.inputs import input_files as sources
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.record_blocks import boundaries_of, next_boundary
from preprocess.recipes.schema import Recipe


@dataclass(frozen=True)
class Partition:
    """What one task reads."""

    number: int
    spans: tuple[Span, ...]


def cut(inputs: list[InputFile], recipe: Recipe) -> list[Partition]:
    """The partitions of `inputs`, in reading order; each source's spans are in order, and small sources share a partition."""
    partitions: list[Partition] = []
    spans: list[Span] = []
    held = 0
    for source in inputs:
        for span in iter_spans(source, recipe):
            if spans and held + span.size_bytes > sources.PARTITION_BYTES:
                partitions.append(Partition(len(partitions), tuple(spans)))
                spans, held = [], 0
            spans.append(span)
            held += span.size_bytes
    if spans:
        partitions.append(Partition(len(partitions), tuple(spans)))
    return partitions


def iter_spans(source: InputFile, recipe: Recipe) -> Iterator[Span]:
    """The spans of one source, in order, looked for as they are asked for."""
    if source.format == "parquet":
        from preprocess.readers.parquet import row_group_bytes

        start = held = 0
        for group, size in enumerate(sizes := row_group_bytes(source, recipe)):
            held += size
            if held >= sources.PARTITION_BYTES or group == len(sizes) - 1:
                yield Span(source.number, start, group + 1, held)
                start, held = group + 1, 0
    elif _can_be_cut(source, recipe):
        start, boundaries = 0, boundaries_of(source, recipe)
        while start < source.size_bytes:
            stop = next_boundary(source, boundaries, start + sources.PARTITION_BYTES)
            yield Span(source.number, start, stop, stop - start)
            start = stop
    else:
        yield Span(source.number, size_bytes=source.size_bytes)


def _can_be_cut(source: InputFile, recipe: Recipe) -> bool:
    """Whether a reader that starts anywhere in the file finds the same documents as one that starts at its head."""
    if source.compression or recipe.group_by == "position" or source.size_bytes <= sources.PARTITION_BYTES:
        return False
    if source.format == "jsonl":
        return True
    # A separator such as "==", which ends as it begins, is found at other places from elsewhere.
    separator = recipe.separator
    overlaps = any(separator.endswith(separator[:n]) for n in range(1, len(separator)))
    return (
        source.format == "text"
        and recipe.split != "contiguous"
        and (recipe.document in ("line", "paragraph") or (recipe.document == "separator" and not overlaps))
    )
