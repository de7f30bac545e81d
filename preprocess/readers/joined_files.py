"""Read several small files together, as one batch of records.

The problem: every batch of records costs about 0.1 ms before its first document is made, however
small it is. With one document in each file, a build would spend most of its time on this.

The idea: the records of consecutive small files of one format are joined, each with the index of
its file and its own index in that file. Nothing is decided here about records that need attention:
if one of them is rejected or an error is raised, the caller reads the files one by one, so that
messages, rejects and their order do not depend on which files were joined.

The cost: files with such a record are read twice. At most MAX_JOINED_FILES files or
MAX_JOINED_BYTES are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers import divide_table, read_records
from preprocess.readers.records import Records, Rejects
from preprocess.recipes.schema import TABLE_FORMATS, Recipe

Source = tuple[InputFile, Span]

MAX_JOINED_FILES = 256
MAX_JOINED_BYTES = 1 << 20
JOINED_FORMATS = ("text", "jsonl", "csv")  # opening a file of another format takes longer than making its documents


def group_small_files(spans: Iterable[Source]) -> Iterator[list[Source]]:
    """Yield the spans in order, in lists of those that can be joined. Other spans are alone in a list."""
    group: list[Source] = []
    num_bytes = 0
    for input_file, span in spans:
        is_small = _can_be_joined(input_file, span)
        num_bytes += span.size_bytes
        is_full = len(group) == MAX_JOINED_FILES or num_bytes > MAX_JOINED_BYTES
        if group and (is_full or not is_small or input_file.format != group[0][0].format):
            yield group
            group, num_bytes = [], span.size_bytes
        group.append((input_file, span))
        if not is_small:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _can_be_joined(input_file: InputFile, span: Span) -> bool:
    """Return whether a span is a whole file, and is small. The size of a compressed file is not known."""
    is_whole = span.start == 0 and span.stop is None
    is_small = span.size_bytes <= MAX_JOINED_BYTES and not input_file.compression
    return is_whole and is_small and input_file.format in JOINED_FORMATS


def read_joined(files: list[Source], recipe: Recipe, rejects: Rejects) -> Records | None:
    """Return the records of several files of one format, or None if they are too large or are parts of a record.

    Raises the errors of `read_span`. If `rejects` counts a record, the others may be incomplete.
    """
    found = [
        (index, records)
        for index, (file, span) in enumerate(files)
        for records in read_records(file, span, recipe, rejects)
    ]
    if not found or any(records.part for _, records in found):
        return None
    joined = _join(found)
    if files[0][0].format not in TABLE_FORMATS:
        return joined
    batches = list(divide_table(iter([joined]), files[0][0], recipe, rejects))
    return batches[0] if len(batches) == 1 else None


def _join(found: list[tuple[int, Records]]) -> Records:
    """Join the records of several files. `found`: pairs of the index of the file and some of its records."""
    parts = [records for _, records in found]
    sizes = [records.num_records for records in parts]
    columns, where = (
        {name: pa.concat_arrays([part[name] for part in of_parts]) for name in of_parts[0]}
        for of_parts in ([records.columns for records in parts], [records.where for records in parts])
    )
    return Records(
        columns,
        0,
        where,
        offsets=_concatenate([records.offsets for records in parts]),
        row_numbers=_concatenate([records.row_numbers for records in parts]),
        files=np.repeat([index for index, _ in found], sizes),
        positions=np.concatenate([np.arange(n) + records.first for n, records in zip(sizes, parts, strict=True)]),
    )


def _concatenate(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    known = [array for array in arrays if array is not None]
    return np.concatenate(known) if known else None
