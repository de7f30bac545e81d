"""Make documents from the records of a reader.

The columns are decoded, the rows that the condition excludes are dropped, the text is joined from
the columns, metadata is added, and long texts are cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import count_text_bytes, get_text_buffers, make_batch
from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.record_blocks import find_cut, reject_oversized
from preprocess.readers.records import Records, Rejects, format_utf8_error
from preprocess.recipes.columns import cast_to_text, is_text_or_bytes
from preprocess.recipes.row_filter import parse_condition
from preprocess.recipes.schema import TABLE_FORMATS, Recipe
from preprocess.recipes.templates import parse_template

METADATA = ("author", "city", "year", "lang", "group", "split")
YEAR_PATTERN = r"\A[0-9]{1,4}(\.0)?\z"


class DocumentMaker:
    """Makes documents from the records of one span and numbers them from 0 within the span."""

    def __init__(self, input_file: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._is_table = input_file.format in TABLE_FORMATS
        self._condition = parse_condition(recipe.where) if recipe.where and self._is_table else None
        self._template = parse_template(recipe.template) if recipe.template is not None and self._is_table else None
        self._num_extra = 0  # documents of the span that were added by cutting others

    def make(self, records: Records) -> tuple[pa.RecordBatch, pa.StringArray | None]:
        """Return the documents of `records` in order, and the name of the split of each.

        The names are returned only if a column or the name of the file contains them. Raises
        FolioError for a record that is not UTF-8 or too long if the recipe makes that an error.
        """
        keep = np.ones(records.num_records, bool)
        columns = {name: self._decode(column, records, keep) for name, column in records.columns.items()}
        if self._condition is not None:
            is_selected = self._condition.apply(records.where).to_numpy(zero_copy_only=False)
            self._rejects.counts["filtered"] += int((keep & ~is_selected).sum())
            keep &= is_selected
        texts = self._join_texts(columns)
        if texts.null_count:
            is_null = texts.is_null().to_numpy(zero_copy_only=False)
            self._rejects.counts["null_text"] += int((keep & is_null).sum())
            keep &= ~is_null
        first_position = records.first + self._num_extra
        self._rejects.num_positions = first_position + records.num_records
        fields = {name: self._get_metadata(name, columns) for name in METADATA}
        fields["text"] = texts
        fields["position"] = pa.array(np.arange(len(keep), dtype=np.uint64) + np.uint64(first_position))
        rows = np.flatnonzero(keep)
        if len(rows) < len(keep):
            kept = pa.array(rows)
            fields = {
                name: value.take(kept) if isinstance(value, pa.Array) else value for name, value in fields.items()
            }
        split = fields.pop("split")
        batch = make_batch({**fields, "source": self._input_file.number}, len(rows))
        split = split if isinstance(split, pa.Array) or split is None else pa.repeat(pa.scalar(split), len(rows))
        return self._cut_long(batch, split)

    def _decode(self, column: pa.Array, records: Records, keep: np.ndarray) -> pa.Array:
        """Return `column` as valid strings. Set `keep` to False for rows that the recipe skips."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not is_text_or_bytes(column.type):
            return cast_to_text(column)
        if self._input_file.format == "jsonl":
            return column  # orjson accepts only UTF-8
        try:
            # A cast from bytes to strings verifies UTF-8 (8 GB/s), one between strings does not.
            return (column if column.type == pa.large_binary() else column.cast(pa.large_binary())).cast(
                pa.large_string()
            )
        except pa.ArrowInvalid:
            return self._decode_rows(column.cast(pa.large_binary()), records, keep)

    def _decode_rows(self, column: pa.LargeBinaryArray, records: Records, keep: np.ndarray) -> pa.Array:
        """Decode a column that contains invalid UTF-8, row by row, as `invalid_utf8` says."""
        texts: list[str | None] = []
        for row, data in enumerate(column.to_pylist()):
            try:
                texts.append(None if data is None else data.decode("utf-8"))
            except UnicodeDecodeError as e:
                self._rejects.counts["invalid_utf8"] += bool(keep[row])
                if self._recipe.invalid_utf8 == "error":
                    raise FolioError(self._format_utf8_error(records, row, data, e)) from e
                keep[row] &= self._recipe.invalid_utf8 == "replace"
                texts.append(data.decode("utf-8", "replace"))
        return pa.array(texts, pa.large_string())

    def _format_utf8_error(self, records: Records, row: int, data: bytes, error: UnicodeDecodeError) -> str:
        if records.offsets is not None:
            location = f"at offset {int(records.offsets[row]) + error.start:,}"
        else:
            location = f"at offset {error.start:,} of row {records.first + row:,}"
        return format_utf8_error(self._input_file.path, location, data[error.start], error.reason)

    def _join_texts(self, columns: dict[str, pa.Array]) -> pa.LargeStringArray:
        if self._template is not None:
            return self._template.join(columns)
        return columns[self._recipe.text_column if self._is_table else "text"]

    def _get_metadata(self, name: str, columns: dict[str, pa.Array]) -> Any:
        """Return the metadata `name`: a column, or one value for all documents, if there is one.

        A column takes precedence over the name of the file, and the name over the recipe's value.
        """
        column = getattr(self._recipe, f"{name}_column") if self._is_table else None
        if column is None:
            if name == "group" and self._recipe.group_by == "source":
                return self._input_file.name
            default = getattr(self._recipe, name, None) if name not in ("group", "split") else None
            return self._input_file.metadata.get(name, default)
        values = columns[column]
        if name == "year":
            return self._parse_years(values)
        return pc.if_else(pc.equal(values, ""), None, values)

    def _parse_years(self, values: pa.Array) -> pa.Array:
        values = pc.utf8_trim_whitespace(values)
        is_year = pc.match_substring_regex(values, YEAR_PATTERN)
        is_unreadable = pc.and_(pc.invert(is_year), pc.not_equal(values, ""))
        self._rejects.counts["unreadable_year"] += pc.sum(is_unreadable).as_py() or 0
        return pc.if_else(is_year, values, None).cast(pa.float64()).cast(pa.int32())

    def _cut_long(
        self, batch: pa.RecordBatch, split: pa.StringArray | None
    ) -> tuple[pa.RecordBatch, pa.StringArray | None]:
        """Cut texts that are longer than `max_document_bytes` into several documents."""
        if len(get_text_buffers(batch.column("text"))[0]) <= self._recipe.max_document_bytes:
            return batch, split  # also if all texts together are short enough
        if int(count_text_bytes(batch.column("text")).max()) <= self._recipe.max_document_bytes:
            return batch, split
        parts: list[memoryview] = []
        rows: list[int] = []  # of `batch`, for each part
        positions: list[int] = []
        num_extra = 0
        for row, (text, position) in enumerate(
            zip(batch.column("text"), batch.column("position").to_pylist(), strict=True)
        ):
            text_parts = self._cut_text(memoryview(text.as_buffer()), position)
            parts += text_parts
            rows += [row] * len(text_parts)
            positions += range(position + num_extra, position + num_extra + len(text_parts))
            num_extra += max(len(text_parts) - 1, 0)
        self._num_extra += num_extra
        self._rejects.num_positions += num_extra
        self._rejects.counts["cut"] += num_extra
        taken = batch.drop_columns(["text"]).take(pa.array(rows, pa.int64()))
        columns = {name: taken.column(name) for name in taken.schema.names}
        columns |= {
            "text": pa.array(parts, pa.large_binary()).cast(pa.large_string()),
            "position": pa.array(positions, pa.uint64()),
        }
        return make_batch(columns, len(rows)), split.take(pa.array(rows, pa.int64())) if split is not None else None

    def _cut_text(self, text: memoryview, position: int) -> list[memoryview]:
        """Return the parts of one text.

        If the rest cannot be cut, it is dropped or, with `oversized = "error"`, raises FolioError.
        """
        parts: list[memoryview] = []
        start, max_bytes = 0, self._recipe.max_document_bytes
        while len(text) - start > max_bytes:
            end = find_cut(text, max_bytes, start)
            if not end:
                record = f"{self._input_file.path}: document {position:,}"
                reject_oversized(record, self._recipe, self._rejects, can_be_cut=True)
                return parts
            parts.append(text[start:end])
            start = end
        return [*parts, text[start:]]
