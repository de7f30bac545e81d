"""Recognise chats in tables, and join the columns of each record to one marked text.

The text has a mark before each message (preprocess/chats/marked_text.py), so that the stages after
the readers handle a chat like any other text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.chats.marked_text import join_messages
from preprocess.chats.messages import (
    INPUTS,
    INSTRUCTION,
    MESSAGE_KEYS,
    UNREAD_PARTS,
    ChatError,
    find_chat_columns,
    parse_chat,
)
from preprocess.chats.templates import DEFAULT_TEMPLATE, TEMPLATES
from preprocess.errors import MisuseError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.column_names import find_in_any, list_column_names
from preprocess.readers.records import (
    CHAT_TEXT,
    MAX_SAVED_BYTES,
    MissingColumnError,
    Records,
    RowError,
    find_required_columns,
)
from preprocess.recipes.columns import is_text_or_bytes, view_as_bytes
from preprocess.recipes.schema import TABLE_FORMATS, Recipe

DEFAULT_TEXT_COLUMN = "text"
SLICE_ROWS = 256  # converted to Python objects at once, which take several times the memory of a column


def resolve_chat_template(recipe: Recipe) -> Recipe:
    """Return `recipe` with a chat template if it has chat columns."""
    if recipe.chat_columns is None or recipe.chat_template is not None:
        return recipe
    return dataclasses.replace(recipe, chat_template=DEFAULT_TEMPLATE)


def recognize_chats(recipe: Recipe, error: MissingColumnError) -> Recipe:
    """Return `recipe` with the chat columns of a table that has no column with the text.

    Raises `error`, which says that a column is missing, if the table has no chat columns that are
    known, or if the recipe says where the text is.
    """
    columns = find_chat_columns(error.names) or _find_columns_of_messages(error.names)
    is_named = recipe.template is not None or recipe.chat_columns is not None
    if columns is None or is_named or error.column != recipe.text_column or error.column != DEFAULT_TEXT_COLUMN:
        raise error
    return resolve_chat_template(dataclasses.replace(recipe, chat_columns=",".join(columns)))


def add_input_column(recipe: Recipe, input_files: Sequence[InputFile]) -> Recipe:
    """Return `recipe` with the column of inputs if its chats are instructions without one, but a file has one.

    Not every file or record must have it, so the first ones may lack it.
    """
    columns = recipe.list_chat_columns()
    if len(columns) != 2 or columns[0] != INSTRUCTION:
        return recipe
    found = find_in_any(input_files, INPUTS, recipe)
    name = next((name for name in INPUTS if name in found), None)
    return recipe if name is None else dataclasses.replace(recipe, chat_columns=f"{columns[0]},{name},{columns[1]}")


def find_unread_parts(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Return those of the columns `names` that other programs put into a chat, and `recipe` does not read."""
    read = find_required_columns(recipe).names
    return [name for name in names if name in UNREAD_PARTS and name not in read]


def advise_about_chats(
    recipe: Recipe, input_files: Sequence[InputFile], known: tuple[InputFile, list[str]] | None
) -> str:
    """Return a line if the first table has chats beside the column `text`, which is read by default, or "".

    `known`: the first JSON or CSV file that is in no archive, and its columns (`InputChecker.first_columns`).
    Files in archives are not looked at: opening one again can mean to decompress all files before it.
    """
    is_default = recipe.text_column == DEFAULT_TEXT_COLUMN and recipe.template is None and recipe.chat_columns is None
    tables = (file for file in input_files if file.format in TABLE_FORMATS and not file.archive)
    table = next(tables, None) if is_default else None
    if table is None:
        return ""
    columns = find_chat_columns(known[1] if known and known[0] is table else list_column_names(table))
    if columns is None:
        return ""
    return (
        f"{table.path} has a column text, which is read, and chats; pass --chat-columns {','.join(columns)} to read "
        "them instead"
    )


def _find_columns_of_messages(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the chat column of a file with one record of JSON, whose messages were taken for records."""
    return next(((column,) for keys, column in MESSAGE_KEYS.items() if {*keys} <= {*names}), None)


def make_chat_text(recipe: Recipe, columns: Sequence[str], values: Sequence[Any]) -> str | None:
    """Return the marked text of one record, or None if a value that must be there is null.

    Raises ChatError if the values are not a chat.
    """
    messages = parse_chat(columns, values)
    if messages is None or recipe.chat_template is None:
        return None
    return join_messages(TEMPLATES[recipe.chat_template].arrange(messages))


def join_chat_columns(batches: Iterator[Records], recipe: Recipe, *, has_nulls: bool) -> Iterator[Records]:
    """Yield records with the marked text, CHAT_TEXT, in place of the columns that only the chat needs.

    `has_nulls`: whether the format has nulls. If it does not, empty values stand for them.
    """
    required = find_required_columns(recipe)
    for records in batches:
        columns = {name: records.columns[name] for name in required.columns}
        # Text becomes bytes, because `to_pylist` fails for a whole slice if one value is not UTF-8.
        chats = [view_as_bytes(records.columns[name]) for name in required.chat]
        if not has_nulls:
            chats = [pc.if_else(pc.equal(column, b""), None, column) for column in chats]
        errors: dict[int, RowError] = {}
        texts = [
            _join_rows(recipe, [chat.slice(start, SLICE_ROWS).to_pylist() for chat in chats], start, errors)
            for start in range(0, records.num_records, SLICE_ROWS)
        ]
        joined = pa.concat_arrays(texts) if texts else pa.array([], pa.large_string())
        yield dataclasses.replace(records, columns={CHAT_TEXT: joined, **columns}, errors=errors)


def _join_rows(
    recipe: Recipe, columns: list[list[Any]], first: int, errors: dict[int, RowError]
) -> pa.LargeStringArray:
    """Return the text of each row, null with an entry in `errors` if it is not a chat.

    `first`: the number of the first row, to which the keys of `errors` refer.
    """
    names = recipe.list_chat_columns()
    texts: list[str | None] = []
    for row, values in enumerate(zip(*columns, strict=True)):
        try:
            texts.append(make_chat_text(recipe, names, values))
        except ChatError as e:
            errors[first + row] = RowError(str(e), _format_record(dict(zip(names, values, strict=True))))
            texts.append(None)
    return pa.array(texts, pa.large_string())


def _format_record(record: dict[str, Any]) -> bytes:
    """Return the beginning of a record as JSON, for the list of rejects. Invalid UTF-8 is escaped."""
    text = json.dumps(record, default=_format_value, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")[:MAX_SAVED_BYTES]


def _format_value(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def check_chat_types(input_file: InputFile, types: Mapping[str, pa.DataType]) -> None:
    """Raise MisuseError if a column of a table with a schema cannot be part of a chat.

    `types`: of the chat columns, by name. One column must be a list of structs; if there are several,
    each may also be text.
    """
    for name, type_ in types.items():
        value = type_.value_type if pa.types.is_dictionary(type_) else type_
        is_text = is_text_or_bytes(value) or value == pa.string_view()
        if not _is_list_of_structs(value) and (len(types) == 1 or not is_text):
            expected = "a list of messages" if len(types) == 1 else "text or a list of messages"
            raise MisuseError(
                f"column {name!r} of {input_file.path} has type {type_!s:.80}, expected {expected}; choose others "
                "with --chat-columns, or pass --text-column or --template"
            )


def _is_list_of_structs(type_: pa.DataType) -> bool:
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return is_list and pa.types.is_struct(type_.value_type)
