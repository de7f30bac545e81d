"""Make documents from the records of a reader.

The columns are decoded, the rows that the condition excludes are dropped, the text is joined from
the columns, metadata is added, and long texts are cut.

The parts of a long record must be on one side of a random split. They are therefore one group,
which is named by a hash of the first part, unless the record has a group already. The name does not
depend on the position of the record, so it is the same for any size of partitions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from preprocess.chats.marked_text import replace_marks
from preprocess.documents import count_text_bytes, get_text_buffers, make_batch, view_text
from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.record_blocks import IS_CHAT, NO_SPACE, check_can_be_cut, reject_oversized
from preprocess.readers.records import CHAT_TEXT, Records, Rejects, format_utf8_error
from preprocess.readers.reject_reasons import RejectReason
from preprocess.readers.utf8 import find_invalid_utf8, replace_invalid_utf8
from preprocess.recipes.columns import cast_to_text, is_text_or_bytes
from preprocess.recipes.row_filter import parse_condition
from preprocess.recipes.schema import TABLE_FORMATS, Recipe
from preprocess.recipes.templates import parse_template
from preprocess.stages.cut_long import cut_long_texts

METADATA = ("author", "city", "year", "lang", "group", "split")
# A year, also as a float, or a date in ISO 8601 such as 1999-05, 1999-05-03 or 1999-05-03T12:00:00Z.
YEAR_PATTERN = r"\A[0-9]{1,4}(\.0)?\z"
DATE_PATTERN = r"\A(?P<year>[0-9]{4})-[01][0-9](?:-[0-3][0-9](?:[T ][0-9].*)?)?\z"


@dataclass(frozen=True)
class RejectedRows:
    """Rows of `records` that are dropped or changed for one reason."""

    kind: str
    reason: str
    records: Records
    is_rejected: np.ndarray  # (R,) bool

    @property
    def num_rows(self) -> int:
        return int(np.count_nonzero(self.is_rejected))


class DocumentMaker:
    """A converter of records to documents, which are numbered from 0 in their span.

    The records are those of one span, or the joined records of several files of one format. The
    latter are meant for records that need no attention: messages about a record that is invalid or
    too long name the first of the files.
    """

    def __init__(self, input_files: Sequence[InputFile], recipe: Recipe, rejects: Rejects) -> None:
        """`input_files`: the file of the span, or the files whose records are joined."""
        input_file = input_files[0]
        self._input_files, self._input_file = input_files, input_file
        self._recipe, self._rejects = recipe, rejects
        self._is_table = input_file.format in TABLE_FORMATS
        self._condition = parse_condition(recipe.where) if recipe.where and self._is_table else None
        self._has_chats = recipe.chat_columns is not None
        self._template = parse_template(recipe.template) if recipe.template is not None and self._is_table else None
        self._num_extra = 0  # documents of the span that were added by cutting others
        # Whether parts of a record are kept together. A passage is a document of its own.
        is_passage = input_file.format == "text" and recipe.document == "passage"
        self._groups_parts = recipe.split in ("exact", "threshold") and not is_passage
        self._part_group: str | None = None  # of the long record whose parts are read

    def make(self, records: Records) -> tuple[pa.RecordBatch, pa.StringArray | None]:
        """Return the documents of `records` in order, and the name of the split of each.

        Instead of the names, None is returned if neither a column nor the name of the file contains
        them. Raises FolioError if a record is not UTF-8 or too long and the recipe makes that an
        error.
        """
        keep = np.ones(records.num_records, bool)
        columns = {name: self._decode(column, records, keep) for name, column in records.columns.items()}
        if self._condition is not None:
            is_selected = self._condition.apply(records.where).to_numpy(zero_copy_only=False)
            self._count(RejectedRows("filtered", "does not satisfy the condition", records, keep & ~is_selected))
            keep &= is_selected
        for row, error in records.errors.items():
            if keep[row]:
                place = records.describe_place(row)
                found = RejectReason("malformed", error.reason, 1, self._input_file.name, place)
                self._rejects.add(found, error.record, has_position=True)
            keep[row] = False
        texts = self._join_texts(columns)
        if texts.null_count:
            is_null = texts.is_null().to_numpy(zero_copy_only=False)
            self._save(RejectedRows("null_text", self._explain_null(), records, keep & is_null))
            keep &= ~is_null
        if self._has_chats and self._is_table:
            is_long = count_text_bytes(texts) > self._recipe.max_document_bytes
            for row in np.flatnonzero(keep & is_long).tolist():
                record = f"{self._input_file.path}: {records.describe_record(row)}"
                reject_oversized(record, self._recipe, self._rejects, IS_CHAT, has_position=True)
            keep &= ~is_long
        first_position = records.first + self._num_extra
        self._rejects.num_positions = first_position + records.num_records
        fields = {name: self._get_metadata(name, records, columns) for name in METADATA}
        if self._is_table and self._recipe.year_column is not None:
            is_unreadable = keep & _find_unreadable_years(columns[self._recipe.year_column], fields["year"])
            self._save(
                RejectedRows("unreadable_year", f"{self._recipe.year_column} has no year", records, is_unreadable)
            )
        if fields["group"] is None and records.part and self._groups_parts:
            if records.part == 1:
                self._part_group = _name_group(view_text(next(iter(records.columns.values())), 0))
            fields["group"] = self._part_group
        fields["text"] = texts
        positions = first_position + np.arange(len(keep)) if records.positions is None else records.positions
        fields["position"] = pa.array(positions.astype(np.uint64))
        fields["source"] = self._get_source(records)
        rows = np.flatnonzero(keep)
        if len(rows) < len(keep):
            kept = pa.array(rows)
            fields = {
                name: value.take(kept) if isinstance(value, pa.Array) else value for name, value in fields.items()
            }
        split = fields.pop("split")
        batch = make_batch(fields, len(rows))
        split = split if isinstance(split, pa.Array) or split is None else pa.repeat(pa.scalar(split), len(rows))
        return self._cut_long(batch, split)

    def _decode(self, column: pa.Array, records: Records, keep: np.ndarray) -> pa.Array:
        """Return `column` as valid strings. Set `keep` to False for rows that the recipe skips."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not is_text_or_bytes(column.type):
            return cast_to_text(column)
        if self._input_file.format == "jsonl" or (self._has_chats and column.type == pa.large_string()):
            return column  # orjson accepts only UTF-8, and chats have been decoded
        try:
            # A cast from bytes to strings verifies UTF-8 (8 GB/s). A cast between types of strings does not.
            return (column if column.type == pa.large_binary() else column.cast(pa.large_binary())).cast(
                pa.large_string()
            )
        except pa.ArrowInvalid:
            return self._decode_rows(column.cast(pa.large_binary()), records, keep)

    def _decode_rows(self, column: pa.LargeBinaryArray, records: Records, keep: np.ndarray) -> pa.Array:
        """Decode a column that contains invalid UTF-8 row by row, as the setting `invalid_utf8` says."""
        data, offsets = get_text_buffers(column)
        texts, ends = bytearray(), [0]
        for row, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
            text = data[start:stop].data
            if (invalid := find_invalid_utf8(text)) is None:
                texts += text
            else:
                if self._recipe.invalid_utf8 == "error":
                    raise FolioError(self._format_utf8_error(records, row, text, invalid))
                if keep[row]:
                    place, reason = records.describe_place(row), f"not UTF-8 ({invalid[1]})"
                    found = RejectReason("invalid_utf8", reason, 1, self._input_file.name, place)
                    self._rejects.add(found, text, has_position=True)
                keep[row] &= self._recipe.invalid_utf8 == "replace"
                texts += replace_invalid_utf8(text) if keep[row] else b""
            ends.append(len(texts))
        decoded = pa.LargeStringArray.from_buffers(len(column), pa.py_buffer(np.array(ends)), pa.py_buffer(texts))
        return pc.if_else(column.is_valid(), decoded, None) if column.null_count else decoded

    def _format_utf8_error(self, records: Records, row: int, data: memoryview, invalid: tuple[int, str]) -> str:
        index, reason = invalid
        if records.offsets is not None:
            location = f"at offset {int(records.offsets[row]) + index:,}"
        else:
            location = f"at offset {index:,} of {records.describe_record(row)}"
        return format_utf8_error(self._input_file, location, data[index], reason)

    def _join_texts(self, columns: dict[str, pa.Array]) -> pa.LargeStringArray:
        if self._template is not None:
            return self._template.join(columns)
        if self._has_chats:  # a document that is not a chat must not contain what marks a turn
            return columns[CHAT_TEXT] if self._is_table else replace_marks(columns["text"])
        return columns[self._recipe.text_column if self._is_table else "text"]

    def _get_source(self, records: Records) -> Any:
        """Return the number of each record's input file, or one number for all records."""
        if records.files is None:
            return self._input_file.number
        return pa.array(np.array([file.number for file in self._input_files], np.uint32)[records.files])

    def _get_metadata(self, name: str, records: Records, columns: dict[str, pa.Array]) -> Any:
        """Return the metadata `name`: a column, one value for all documents, or None.

        A column takes precedence over the name of the file, and the name over the recipe's value.
        """
        column = getattr(self._recipe, f"{name}_column") if self._is_table else None
        if column is None:
            of_files = [self._get_metadata_of_file(name, file) for file in self._input_files]
            if all(value == of_files[0] for value in of_files):
                return of_files[0]
            return pa.array(of_files).take(pa.array(records.files))
        values = columns[column]
        if name == "year":
            return parse_years(values)
        return pc.if_else(pc.equal(values, ""), None, values)

    def _get_metadata_of_file(self, name: str, file: InputFile) -> str | int | None:
        if name == "group" and self._recipe.group_by == "source":
            return file.name
        default = getattr(self._recipe, name, None) if name not in ("group", "split") else None
        return file.metadata.get(name, default)

    def _explain_null(self) -> str:
        if self._has_chats:
            return f"{self._recipe.chat_columns} is null"
        return (
            "a column of the template is null" if self._template is not None else f"{self._recipe.text_column} is null"
        )

    def _count(self, rejected: RejectedRows) -> None:
        """Count rows that the recipe drops."""
        if rejected.is_rejected.any():
            self._rejects.count(self._describe(rejected, int(np.argmax(rejected.is_rejected)), rejected.num_rows))

    def _save(self, rejected: RejectedRows) -> None:
        """Count rows that are dropped or changed, and save the places of the first ones."""
        if not rejected.is_rejected.any():
            return
        rows = np.flatnonzero(rejected.is_rejected)
        saved, others = np.split(rows, [self._rejects.count_unused(rejected.kind)])
        for row in saved.tolist():
            self._rejects.add(self._describe(rejected, row, 1), has_position=True)
        if len(others):
            self._rejects.count(self._describe(rejected, int(others[0]), len(others)))

    def _describe(self, rejected: RejectedRows, row: int, num_rows: int) -> RejectReason:
        files, place = rejected.records.files, rejected.records.describe_place(row)
        file = self._input_file if files is None else self._input_files[files[row]]
        return RejectReason(rejected.kind, rejected.reason, num_rows, file.name, place)

    def _cut_long(
        self, batch: pa.RecordBatch, split: pa.StringArray | None
    ) -> tuple[pa.RecordBatch, pa.StringArray | None]:
        """Cut texts that are longer than `max_document_bytes` into several documents."""
        if len(get_text_buffers(batch.column("text"))[0]) <= self._recipe.max_document_bytes:
            return batch, split  # also if all texts together are short enough
        if int(count_text_bytes(batch.column("text")).max()) <= self._recipe.max_document_bytes:
            return batch, split
        parts = cut_long_texts(batch.column("text"), self._recipe.max_document_bytes)
        positions = batch.column("position").to_numpy().astype(np.int64)
        num_parts = np.bincount(parts.rows, minlength=batch.num_rows)  # of each text
        for row in np.flatnonzero(num_parts > 1).tolist():
            check_can_be_cut(f"{self._input_file.path}: document {positions[row]:,}", self._recipe)
        for row in np.flatnonzero(~parts.is_complete).tolist():
            record = f"{self._input_file.path}: document {positions[row]:,}"
            reject_oversized(record, self._recipe, self._rejects, NO_SPACE, has_position=True)
        num_extra = np.maximum(num_parts - 1, 0)
        self._num_extra += int(num_extra.sum())
        self._rejects.num_positions += int(num_extra.sum())
        self._rejects.counts["cut"] += int(num_extra.sum())
        rows, first_parts = pa.array(parts.rows), np.cumsum(num_parts) - num_parts
        indices = np.arange(len(parts.rows)) - first_parts[parts.rows]  # of the parts in their texts
        positions += np.cumsum(num_extra) - num_extra
        columns = {name: batch.column(name).take(rows) for name in batch.schema.names if name != "text"}
        columns |= {"text": parts.texts, "position": pa.array((positions[parts.rows] + indices).astype(np.uint64))}
        if self._groups_parts:
            names: list[str | None] = [None] * batch.num_rows
            for row in np.flatnonzero(num_parts > 1).tolist():
                names[row] = _name_group(view_text(parts.texts, first_parts[row]))
            columns["group"] = pc.coalesce(columns["group"], pa.array(names, pa.string()).take(rows))
        return make_batch(columns, len(rows)), split.take(rows) if split is not None else None


def parse_years(values: pa.StringArray) -> pa.Int32Array:
    """Return the year of each of R texts, a number or a date in ISO 8601; null if there is none."""
    values = pc.utf8_trim_whitespace(values)
    is_year = pc.match_substring_regex(values, YEAR_PATTERN)
    years = pc.if_else(is_year, values, None)
    if pc.any(pc.invert(is_year)).as_py():
        years = pc.coalesce(years, pc.struct_field(pc.extract_regex(values, DATE_PATTERN), "year"))
    return years.cast(pa.float64()).cast(pa.int32())


def _find_unreadable_years(values: pa.StringArray, years: pa.Int32Array) -> np.ndarray:
    """Return which of R values have text but no year: (R,) bool."""
    has_text = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(values), ""), False)
    is_unreadable: np.ndarray = pc.and_(pc.is_null(years), has_text).to_numpy(zero_copy_only=False)
    return is_unreadable


def _name_group(first_part: pa.Buffer) -> str:
    """Return the group of the parts of a record that begins with `first_part`."""
    return f"parts of {xxhash.xxh3_128_hexdigest(first_part)}"
