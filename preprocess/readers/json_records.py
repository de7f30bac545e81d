"""Parse one record of JSON, and take from it the values that a recipe needs.

Python's `json` and pandas write NaN and Infinity, which JSON does not have and orjson rejects. Only
such records are parsed again with Python's parser.

An escape such as \\ud800 is half of a character. It is not text, and is treated like bytes that are
not UTF-8.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from preprocess.chats.messages import ChatError
from preprocess.readers.chat_columns import make_chat_text
from preprocess.readers.records import RequiredColumns, find_required_columns
from preprocess.readers.utf8 import Buffer
from preprocess.recipes.nested import get_nested
from preprocess.recipes.schema import Recipe

Row = tuple[list[Any], list[Any]]  # the values for the document, and those for the condition
MAX_INT_DIGITS = 18  # which fit into 64 bits
NON_FINITE = re.compile(rb"NaN|Infinity")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
REPLACEMENT = rb"\ufffd"
# A pair of surrogates, half of a pair, or any other escape.
ESCAPES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


class RecordParser:
    """A parser of records, which returns the values of the required columns."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._required = recipe, (required := find_required_columns(recipe))
        self._chat = required.chat
        self._columns = tuple(required.columns)
        self._where = tuple(required.where.items())
        # Most names have no dots, and `dict.get` is faster.
        self._get: Any = get_nested if any("." in name for name in required.names) else dict.get

    def parse(self, data: Buffer) -> Row | str:
        """Return the values for the document and for the condition, or the reason why the record is rejected.

        If there are chat columns, the first value is the marked text of the chat, and the others are
        those of the other columns.
        """
        try:
            record = orjson.loads(data)
        except orjson.JSONDecodeError as e:
            record = _parse_non_finite(data, e)
            if isinstance(record, orjson.JSONDecodeError):
                return f"invalid JSON: {e}"
        if not isinstance(record, dict):
            return f"expected a JSON object, got {get_json_type(record)}"
        required, get = self._required, self._get
        try:
            values = [
                value if isinstance(value := get(record, name), str) else _to_text(value, name, required)
                for name in self._columns
            ]
            if self._chat:
                chat = [get(record, name) for name in self._chat]
                values.insert(0, make_chat_text(self._recipe, self._chat, chat))
            if not self._where:
                return values, []
            return values, [_to_kind(get(record, name), name, kind) for name, kind in self._where]
        except (TypeError, ChatError) as e:
            return str(e)


def parse_object(data: Buffer) -> dict[str, Any]:
    """Return the fields of a record, none if it is malformed."""
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as e:
        record = _parse_non_finite(data, e)
    return record if isinstance(record, dict) else {}


def _parse_non_finite(data: Buffer, error: orjson.JSONDecodeError) -> Any:
    """Return the value of a record that has NaN or Infinity, or `error` if something else is wrong with it."""
    is_non_finite = "infinity" in error.msg or NON_FINITE.search(data)
    if not is_non_finite or replace_lone_surrogates(data) is not None:
        return error
    try:
        return json.loads(bytes(data).decode(), parse_int=_parse_int)
    except (ValueError, RecursionError):
        return error


def _parse_int(digits: str) -> int | float:
    """Return a number as orjson does: a float if it does not fit into 64 bits."""
    if len(digits) > MAX_INT_DIGITS:
        number: int | float = orjson.loads(digits)
        return number
    return int(digits)


def replace_lone_surrogates(data: Buffer) -> tuple[bytearray, int] | None:
    r"""Return `data` with \ufffd for each half of a surrogate pair, and the offset of the first, if there is any."""
    if SURROGATE.search(data) is None:
        return None
    replaced = bytearray(data)
    first: int | None = None
    for match in ESCAPES.finditer(data):
        if match.start(1) >= 0:
            start, end = match.span()
            replaced[start:end] = REPLACEMENT
            first = start if first is None else first
    return None if first is None else (replaced, first)


def get_json_type(value: Any) -> str:
    """Return the name of a value's type in JSON."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _to_text(value: Any, name: str, required: RequiredColumns) -> str | None:
    """Return a value that is not a string as text. Raises TypeError if it cannot be converted."""
    if value is None or value != value:  # NaN, which pandas writes for a missing value
        return None
    is_formattable = isinstance(value, bool | int | float)
    if name == required.text_only or not is_formattable:
        raise TypeError(f"{name} must be text, got {_explain_value(value, name)}")
    if isinstance(value, float):
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        if value.is_integer() and abs(value) >= 2**53:
            raise TypeError(f"{name} is a number with too many digits for a float; put it in quotes")
    return orjson.dumps(value).decode()


def _explain_value(value: Any, name: str) -> str:
    """Return the type of a value that is not text, and what to do."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and {"role", "from"} & value[0].keys():
        return f"array of messages; pass --chat-columns {name} to read chats"
    if isinstance(value, list):
        of = f" of {get_json_type(value[0])}s" if value else ""
        return f"array{of}; join its elements to one text before"
    if isinstance(value, dict) and isinstance(value.get("0"), str):
        return "object with a row in each key, as pandas writes it by default; write it with to_json(orient='records')"
    if isinstance(value, dict):
        texts = [key for key, inner in value.items() if isinstance(inner, str)]
        return "object" + (f"; choose a value in it, such as {name}.{texts[0][:40]}" if texts else "")
    return f"{get_json_type(value)}; --template '{{{name}}}' writes it as text"


def _to_kind(value: Any, name: str, kind: str) -> Any:
    """Return `value` as the condition needs it. Raises TypeError if it is not of `kind`."""
    if value is None or value != value:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_of_kind = {
        "number": is_number, "exact number": is_number, "text": isinstance(value, str),
        "boolean": isinstance(value, bool), "null": True,
    }  # fmt: skip
    if not is_of_kind[kind]:
        expected = kind.removeprefix("exact ")
        raise TypeError(f"the condition compares {name} with a value of type {expected}, got {get_json_type(value)}")
    if kind == "null":
        return str(value)
    return float(value) if kind == "number" else value
