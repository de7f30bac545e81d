"""Records → documents: text checked to be UTF-8, columns joined, rows chosen, metadata put in place, long texts cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import make_batch, text_bytes
from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.record_blocks import find_cut, reject_oversized
from preprocess.readers.records import Records, Rejects, explain_utf8
from preprocess.recipes.columns import as_text, is_text_or_bytes
from preprocess.recipes.row_filter import parse_condition
from preprocess.recipes.schema import TABLES, Recipe
from preprocess.recipes.templates import parse_template

METADATA = ("author", "city", "year", "lang", "group", "split")
YEAR = r"\A[0-9]{1,4}(\.0)?\z"


class DocumentMaker:
    """Makes documents of one span's records; keeps count, so that every document has its number in the span."""

    def __init__(self, source: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._source, self._recipe, self._losses = source, recipe, rejects
        self._is_table = source.format in TABLES
        self._condition = parse_condition(recipe.where) if recipe.where and self._is_table else None
        self._template = parse_template(recipe.template) if recipe.template is not None and self._is_table else None
        self._num_extra = 0  # documents that cutting has added so far

    def make(self, records: Records) -> tuple[pa.RecordBatch, pa.StringArray | None]:
        """The documents of `records`, in order, and what a column or the file's name says of their side of the split."""
        keep = np.ones(records.num_records, bool)
        columns = {name: self._decode(column, records, keep) for name, column in records.columns.items()}
        if self._condition is not None:
            chosen = self._condition.apply(records.where).to_numpy(zero_copy_only=False)
            self._losses.counts["filtered"] += int((keep & ~chosen).sum())
            keep &= chosen
        texts = self._texts(columns)
        if texts.null_count:
            is_null = texts.is_null().to_numpy(zero_copy_only=False)
            self._losses.counts["null_text"] += int((keep & is_null).sum())
            keep &= ~is_null
        self._losses.num_positions = records.first + records.num_records + self._num_extra
        rows = np.flatnonzero(keep)
        fields = {name: self._metadata(name, columns) for name in METADATA}
        fields |= {
            "text": texts,
            "position": pa.array(np.arange(len(keep), dtype=np.uint64) + np.uint64(records.first + self._num_extra)),
        }
        if len(rows) < len(keep):
            take = pa.array(rows)
            fields = {
                name: value.take(take) if isinstance(value, pa.Array) else value for name, value in fields.items()
            }
        side = fields.pop("split")
        batch = make_batch({**fields, "source": self._source.number}, len(rows))
        side = side if isinstance(side, pa.Array) or side is None else pa.repeat(pa.scalar(side), len(rows))
        return self._cut_long(batch, side)

    def _decode(self, column: pa.Array, records: Records, keep: np.ndarray) -> pa.Array:
        """`column` as valid strings; rows that may not be are dealt with as the recipe says."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not is_text_or_bytes(column.type):
            return as_text(column)
        if self._source.format == "jsonl":
            return column  # orjson has checked it
        try:
            # Through bytes: a cast to strings checks UTF-8 (8 GB/s), one from strings to strings does not.
            return column.cast(pa.large_binary()).cast(pa.large_string())
        except pa.ArrowInvalid:
            return self._mend(column.cast(pa.large_binary()), records, keep)

    def _mend(self, column: pa.LargeBinaryArray, records: Records, keep: np.ndarray) -> pa.Array:
        texts: list[str | None] = []
        for row, data in enumerate(column.to_pylist()):
            try:
                texts.append(None if data is None else data.decode("utf-8"))
            except UnicodeDecodeError as e:
                self._losses.counts["invalid_utf8"] += bool(keep[row])
                if self._recipe.invalid_utf8 == "error":
                    raise FolioError(self._explain(records, row, data, e)) from e
                keep[row] &= self._recipe.invalid_utf8 == "replace"
                texts.append(data.decode("utf-8", "replace"))
        return pa.array(texts, pa.large_string())

    def _explain(self, records: Records, row: int, data: bytes, error: UnicodeDecodeError) -> str:
        if records.offsets is not None:
            where = f"at offset {int(records.offsets[row]) + error.start:,}"
        else:
            where = f"at offset {error.start:,} of row {records.first + row:,}"
        return explain_utf8(self._source.path, where, data[error.start], error.reason)

    def _texts(self, columns: dict[str, pa.Array]) -> pa.LargeStringArray:
        if self._template is not None:
            return self._template.join(columns)
        return columns[self._recipe.text_column if self._is_table else "text"]

    def _metadata(self, name: str, columns: dict[str, pa.Array]) -> Any:
        """Of each document by its column, else of all by the file's name, else as the recipe fixes it."""
        column = getattr(self._recipe, f"{name}_column") if self._is_table else None
        if column is None:
            fixed = self._source.metadata.get(
                name, getattr(self._recipe, name, None) if name not in ("group", "split") else None
            )
            if name == "group" and self._recipe.group_by == "source":
                return self._source.name
            return fixed
        values = columns[column]
        if name == "year":
            return self._years(values)
        return pc.if_else(pc.equal(values, ""), None, values)

    def _years(self, values: pa.Array) -> pa.Array:
        values = pc.utf8_trim_whitespace(values)
        is_year = pc.match_substring_regex(values, YEAR)
        unreadable = pc.and_(pc.invert(is_year), pc.not_equal(values, ""))
        self._losses.counts["unreadable_year"] += pc.sum(unreadable).as_py() or 0
        return pc.if_else(is_year, values, None).cast(pa.float64()).cast(pa.int32())

    def _cut_long(
        self, batch: pa.RecordBatch, side: pa.StringArray | None
    ) -> tuple[pa.RecordBatch, pa.StringArray | None]:
        sizes = text_bytes(batch.column("text"))
        if not len(sizes) or int(sizes.max()) <= self._recipe.max_document_bytes:
            return batch, side
        parts: list[memoryview] = []
        rows: list[int] = []
        positions: list[int] = []
        extra = 0
        for row, (text, position) in enumerate(
            zip(batch.column("text"), batch.column("position").to_pylist(), strict=True)
        ):
            cut = self._parts(memoryview(text.as_buffer()), position)
            parts += cut
            rows += [row] * len(cut)
            positions += range(position + extra, position + extra + len(cut))
            extra += max(len(cut) - 1, 0)
        self._num_extra += extra
        self._losses.num_positions += extra
        self._losses.counts["cut"] += extra
        taken = batch.drop_columns(["text"]).take(pa.array(rows, pa.int64()))
        columns = {name: taken.column(name) for name in taken.schema.names}
        columns |= {
            "text": pa.array(parts, pa.large_binary()).cast(pa.large_string()),
            "position": pa.array(positions, pa.uint64()),
        }
        return make_batch(columns, len(rows)), side.take(pa.array(rows, pa.int64())) if side is not None else None

    def _parts(self, data: memoryview, position: int) -> list[memoryview]:
        parts: list[memoryview] = []
        start, limit = 0, self._recipe.max_document_bytes
        while len(data) - start > limit:
            place = find_cut(data, limit, start)
            if not place:
                reject_oversized(f"{self._source.path}: document {position:,} is", self._recipe, can_be_cut=True)
                self._losses.counts["oversized"] += 1
                return parts
            parts.append(data[start:place])
            start = place
        return [*parts, data[start:]]
