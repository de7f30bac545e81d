"""Divide the input files into partitions, the units of work of a build.

The problem: a build with many workers needs many tasks of similar size, but its bytes must not
depend on how the input was divided.

The idea: a partition is a list of spans, and a span begins and ends at record boundaries, so that
every record is in exactly one span. Whatever depends on more than one record is decided after all
partitions are read. Inside a span, documents are numbered from 0, and the number of documents in
the earlier spans of the same file is added later. Duplicates and the split follow from hashes of
contents and groups. Control ids and output offsets are assigned over all partitions in reading
order. The size of partitions therefore changes only the speed.

A file that cannot be divided is one span: a compressed file or one in another encoding than UTF-8
(it cannot be read from the middle), a file in an archive, an Arrow stream, an HTML page, a WARC file,
a CSV file (quotes may contain line feeds), a file that is one document, and a file whose documents
are grouped by their position.

A text of several `max_document_bytes` that is split at a fraction of its characters is divided by a
build where the reader cuts it into documents, so that all workers can read it. The characters of
the spans are counted first, because the fraction is that of the whole text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from preprocess.inputs import input_files as inputs
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.record_blocks import (
    find_cut_in_file,
    find_next_boundary,
    get_boundaries,
    overlaps_itself,
)
from preprocess.recipes.schema import Recipe


class Partition(NamedTuple):
    """The spans that one task reads."""

    number: int
    spans: tuple[Span, ...]


def make_partitions(input_files: list[InputFile], recipe: Recipe) -> list[Partition]:
    """Return the partitions of all input files, in reading order.

    A partition has about PARTITION_BYTES and at most PARTITION_FILES spans. Small files share one.
    Raises the errors of `iter_spans`.
    """
    partitions: list[Partition] = []
    spans: list[Span] = []
    size_bytes = 0
    last_archive = ""  # which must stay in one partition, as it can only be read in its order
    for input_file in input_files:
        archive = input_file.disk.path if input_file.is_sequential else ""
        is_divided = _can_divide_at_cuts(input_file, recipe)
        for span in _divide_at_cuts(input_file, recipe) if is_divided else iter_spans(input_file, recipe):
            is_full = size_bytes + span.size_bytes > inputs.PARTITION_BYTES or len(spans) >= inputs.PARTITION_FILES
            if spans and is_full and not (archive and archive == last_archive):
                partitions.append(Partition(len(partitions), tuple(spans)))
                spans, size_bytes = [], 0
            spans.append(span)
            size_bytes += span.size_bytes
        last_archive = archive
    if spans:
        partitions.append(Partition(len(partitions), tuple(spans)))
    return partitions


def iter_spans(input_file: InputFile, recipe: Recipe) -> Iterator[Span]:
    """Yield the spans of one input file, in order. With the split "contiguous", a text file is one span.

    The file is read only as far as the spans that are consumed. Raises the errors of
    `get_row_group_bytes` for a Parquet file.
    """
    if input_file.format == "parquet":
        from preprocess.readers.parquet import get_row_group_bytes

        start = size_bytes = 0
        group_bytes = get_row_group_bytes(input_file, recipe)
        for group, num_bytes in enumerate(group_bytes):
            size_bytes += num_bytes
            if size_bytes >= inputs.PARTITION_BYTES or group == len(group_bytes) - 1:
                yield Span(input_file.number, start, group + 1, size_bytes)
                start, size_bytes = group + 1, 0
    elif input_file.format == "arrow":
        from preprocess.readers.arrow import count_record_batches

        num_batches = count_record_batches(input_file, recipe)
        num_spans = max(min(num_batches, input_file.size_bytes // inputs.PARTITION_BYTES), 1)
        edges = [num_batches * i // num_spans for i in range(num_spans + 1)]
        for start, stop in itertools.pairwise(edges):
            yield Span(input_file.number, start, stop, input_file.size_bytes // num_spans)
    elif _can_divide(input_file, recipe):
        start, boundaries = 0, get_boundaries(input_file, recipe)
        while start < input_file.size_bytes:
            stop = find_next_boundary(input_file, boundaries, start + inputs.PARTITION_BYTES)
            yield Span(input_file.number, start, stop, stop - start)
            start = stop
    else:
        yield Span(input_file.number, size_bytes=input_file.size_bytes)


def _can_divide(input_file: InputFile, recipe: Recipe) -> bool:
    """Return whether a file is larger than a partition and can be read from any record boundary."""
    if not input_file.is_plain or recipe.group_by == "position" or input_file.size_bytes <= inputs.PARTITION_BYTES:
        return False
    if input_file.format == "jsonl":
        from preprocess.readers.json import has_lines

        return has_lines(input_file, recipe)
    if input_file.format != "text" or recipe.split == "contiguous":
        return False
    return recipe.document in ("line", "paragraph") or (
        recipe.document == "separator" and not overlaps_itself(recipe.separator)
    )


def _can_divide_at_cuts(input_file: InputFile, recipe: Recipe) -> bool:
    """Return whether a file is a text that is split at a fraction of its characters and has more than two documents.

    A shorter text is encoded faster by one process with several threads.
    """
    min_bytes = 2 * max(recipe.max_document_bytes, inputs.PARTITION_BYTES)
    return recipe.split == "contiguous" and input_file.is_plain and input_file.size_bytes > min_bytes


def _divide_at_cuts(input_file: InputFile, recipe: Recipe) -> Iterator[Span]:
    """Yield the spans of a long text, which end where the reader cuts it. The last one has all that cannot be cut."""
    start = stop = 0
    with open(input_file.path, "rb") as file:
        while stop < input_file.size_bytes:
            is_last = input_file.size_bytes - stop <= recipe.max_document_bytes
            cut = 0 if is_last else find_cut_in_file(file, recipe.max_document_bytes, stop)
            stop = cut or input_file.size_bytes
            if stop == input_file.size_bytes or stop - start >= inputs.PARTITION_BYTES:
                yield Span(input_file.number, start, stop, stop - start)
                start = stop


def is_one_document(input_file: InputFile, recipe: Recipe) -> bool:
    """Return whether a file is one record, which may be cut later, into passages or at the split."""
    is_text = input_file.format == "text" and recipe.document in ("file", "passage")
    return is_text or input_file.format == "html"
