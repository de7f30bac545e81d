"""Check and convert the columns of tables that have a schema: Parquet and Arrow."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.errors import MisuseError, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.readers.chat_columns import check_chat_types
from preprocess.readers.records import check_columns, find_required_columns, raise_list
from preprocess.readers.value_sizes import VIEW_TYPES, get_views, is_list
from preprocess.recipes.columns import get_kind, is_text_or_bytes
from preprocess.recipes.nested import split_path
from preprocess.recipes.schema import Recipe

MAX_INLINE_BYTES = 12  # of a value that is stored in its view


def check_schema(input_file: InputFile, schema: pa.Schema, recipe: Recipe) -> None:
    """Raise MisuseError if a required column is missing, occurs twice, or has a type that cannot become text.

    Other columns may occur twice.
    """
    required = find_required_columns(recipe)
    for name in required.names:
        if name not in schema.names and (parent := _find_list(schema, name)):
            raise_list(input_file, parent, name)
    check_columns(input_file, required, [*schema.names, *(n for n in required.names if _find_nested(schema, n))])
    for name in required.names:
        if {schema.names.count(name), schema.names.count(split_path(name)[0])} - {0, 1}:
            raise MisuseError(f"{input_file.path} has two columns of the same name, {shorten(name)!r}; rename one")
    types = {
        name: schema.field(name).type if name in schema.names else _find_nested(schema, name)
        for name in required.of_documents
    }
    check_chat_types(input_file, {name: types[name] for name in required.chat})
    for name in required.columns:
        _check_type(input_file, name, types[name], text_only=name == required.text_only)


def _find_nested(schema: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a value in a struct, such as that of "meta.lang" in a column "meta", if there is one."""
    first, *rest = split_path(name)
    if not rest or schema.names.count(first) != 1:
        return None
    type_ = schema.field(first).type
    for key in rest:
        if not pa.types.is_struct(type_) or type_.get_field_index(key) < 0:
            return None
        type_ = type_.field(key).type
    return type_


def _find_list(schema: pa.Schema, name: str) -> str:
    """Return the name of the column or nested value with a list that the column `name` leads into, or ""."""
    first, *rest = split_path(name)
    type_ = schema.field(first).type if schema.names.count(first) == 1 else pa.null()
    for number, key in enumerate(rest, 1):
        if is_list(type_):
            return ".".join([first, *rest][:number])
        index = type_.get_field_index(key) if pa.types.is_struct(type_) else -1
        type_ = type_.field(index).type if index >= 0 else pa.null()
    return ""


def take_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column of a batch, or a value in a struct, which is null if the struct is."""
    if name in batch.schema.names:
        return batch.column(name)
    first, *rest = split_path(name)
    return pc.struct_field(batch.column(first), rest)


def _check_type(input_file: InputFile, name: str, type_: pa.DataType, *, text_only: bool) -> None:
    value = type_.value_type if pa.types.is_dictionary(type_) else type_
    is_formattable = get_kind(value) in ("number", "boolean", "date")
    if not is_text_or_bytes(value) and value not in VIEW_TYPES and (text_only or not is_formattable):
        if is_list(value):
            raise_list(input_file, name, name)
        advice = f"pass --template '{{{shorten(name)}}}' to write its values as text, or " if is_formattable else ""
        raise MisuseError(
            f"column {name!r} of {input_file.path} has type {type_}, expected text; {advice}"
            "choose another with --text-column, --template, --author-column or similar"
        )


def convert_views(column: pa.Array) -> pa.Array:
    """Return a column of string views or binary views as one of bytes; other columns as they are.

    The column, which must have been validated, may be dictionary-encoded. The values are copied, except
    a long one that is alone in the column.
    """
    if pa.types.is_dictionary(column.type):
        if column.type.value_type not in VIEW_TYPES:
            return column
        return pa.DictionaryArray.from_arrays(column.indices, convert_views(column.dictionary))
    if column.type not in VIEW_TYPES:
        return column
    if len(column) == 1 and column.null_count == 0:
        size, _, buffer_number, offset = get_views(column)[0].tolist()
        if size > MAX_INLINE_BYTES:
            offsets = pa.py_buffer(np.array([offset, offset + size], np.int64))
            return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, column.buffers()[2 + buffer_number]])
    return column.cast(pa.binary_view()).cast(pa.large_binary())
