"""JSON lines → records. A line that cannot be read is kept aside and counted; the others are not harmed.

orjson reads line by line: one parser for good and bad lines alike, so that no byte depends on which of them share a block. Arrow's
own reader would be faster, but gives up a block for one bad line, and takes text that looks like a date for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.decompress import blocks
from preprocess.readers.record_blocks import runs
from preprocess.readers.records import Needed, Records, Rejects, check_columns, explain_utf8, needed_columns
from preprocess.recipes.schema import Recipe

TYPES = {"text": pa.large_string(), "number": pa.float64(), "boolean": pa.bool_(), "null": pa.large_string()}
HEAD_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # Windows puts it in front of files; JSON has none


def check_jsonl(source: InputFile, recipe: Recipe) -> None:
    """Raise MisuseError where no object of the first megabyte has a column that the recipe needs, or the condition is mixed up."""
    needed = needed_columns(recipe)
    if mixed := [name for name, kind in needed.where.items() if kind == "mixed"]:
        raise MisuseError(
            f"the condition compares {mixed[0]} with values of several kinds; wanted text, numbers or true and false"
        )
    head = next(blocks(source, 0, None if source.compression else min(source.size_bytes, HEAD_BYTES)), b"")[:HEAD_BYTES]
    keys: dict[str, None] = {}
    for line in head.removeprefix(BYTE_ORDER_MARK).splitlines():
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # the reader will tell
        if isinstance(record, dict):
            keys.update(dict.fromkeys(record))
    if keys:
        check_columns(source, needed, list(keys))


def read_jsonl(source: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """The records of `span`, each needed column of the kind it is needed as; a key that a line lacks is null."""
    needed = needed_columns(recipe)
    number = 0
    for offset, run, _ in runs(source, span.start, span.stop, recipe, rejects):
        rows: list[tuple[list[Any], list[Any]]] = []
        starts = []
        for line in run.split(b"\n"):
            start, offset = offset, offset + len(line) + 1
            if start == 0:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if not line.strip():
                continue
            try:
                row = _row(line, needed, recipe, rejects)
            except UnicodeDecodeError as e:
                if recipe.invalid_utf8 == "error":
                    raise FolioError(
                        explain_utf8(source.path, f"at offset {start + e.start:,}", line[e.start], e.reason)
                    ) from e
                rejects.counts["invalid_utf8"] += 1
                continue
            if isinstance(row, str):
                rejects.refuse(source.name, f"byte {start}", row, line)
            else:
                rows.append(row)
                starts.append(start)
        if rows:
            columns = _arrays(needed.columns, [row[0] for row in rows])
            yield Records(columns, number, _arrays(needed.where, [row[1] for row in rows]), np.array(starts, np.int64))
        number += len(rows)


def _arrays(kinds: dict[str, str], rows: list[list[Any]]) -> dict[str, pa.Array]:
    values = zip(*rows, strict=True) if kinds else ()
    return {name: pa.array(column, TYPES[kind]) for (name, kind), column in zip(kinds.items(), values, strict=True)}


def _row(line: bytes, needed: Needed, recipe: Recipe, rejects: Rejects) -> tuple[list[Any], list[Any]] | str:
    """What `line` holds of the needed columns and of the condition's, or why it cannot be used.

    Raises UnicodeDecodeError where it is not UTF-8 and the recipe does not replace what is not.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            if recipe.invalid_utf8 != "replace":
                raise
            rejects.counts["invalid_utf8"] += 1
            return _row(line.decode("utf-8", "replace").encode(), needed, recipe, rejects)
        return f"no JSON: {e}"
    if not isinstance(record, dict):
        return f"a JSON {_json_type(record)}, wanted an object"
    try:
        columns = [_as_text(record.get(name), name, needed) for name in needed.columns]
        return columns, [_as_kind(record.get(name), name, kind) for name, kind in needed.where.items()]
    except TypeError as e:
        return str(e)


def _as_text(value: Any, name: str, needed: Needed) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if name == needed.strict or not isinstance(value, bool | int | float):
        raise TypeError(f"{name} is a {_json_type(value)}, wanted text")
    if isinstance(value, float) and value.is_integer() and abs(value) >= 2**53:
        raise TypeError(f"{name} is a number of more digits than can be told apart, wanted it in quotes")
    return orjson.dumps(value).decode()


def _as_kind(value: Any, name: str, kind: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {"number": is_number, "text": isinstance(value, str), "boolean": isinstance(value, bool), "null": True}
    if value is None or fits[kind]:
        if value is None:
            return None
        return str(value) if kind == "null" else float(value) if kind == "number" else value
    raise TypeError(f"{name} is a {_json_type(value)}, the condition wants {kind}")


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
