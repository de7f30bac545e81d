"""Receipts: small JSON files in the work directory that record which tasks are finished.

A task writes its receipt after its output files, with the size and hash of each file. An
interrupted build that is started again reads the receipts and repeats only the tasks without a
valid one.

A crash or a faulty disk may damage a receipt. So it contains its own hash, and `read_receipt`
checks every value against the type of its dataclass field. The field names are the keys of the JSON
object.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import xxhash

from preprocess.filters.counts import FilterCounts
from preprocess.readers.reject_reasons import RejectReason
from preprocess.shards.files import canonical_json, make_partial_path, parse_json

T = TypeVar("T")


@dataclass(frozen=True)
class FileChecksum:
    """The size and hash of an output file."""

    size_bytes: int
    xxh3: str  # 64-bit XXH3 hash of the content, hexadecimal


@dataclass(frozen=True)
class EncodingReport:
    """How the documents of a partition were encoded."""

    backend: str  # the library that encoded them
    backend_fallback: str | None  # why the fast backend could not be started; None if it was, or if there is none
    peak_memory_bytes: int | None  # of the process, so far


@dataclass(frozen=True, kw_only=True)
class PartitionReceipt:
    """The fields of every receipt of a task on a partition."""

    TASK: ClassVar[str]  # part of the receipt's file name

    files: dict[str, FileChecksum]  # suffix of the output file -> checksum
    num_documents: int


@dataclass(frozen=True, kw_only=True)
class PartitionValues:
    """The distinct values in the documents of a partition: the JSON object in its file `.values`.

    They are not in the receipt, because the receipts of all partitions are in memory at once.
    """

    author: list[str]
    city: list[str]
    lang: list[str]
    alphabet: list[int] | None  # the code points of all texts, sorted; only for the tokenizer `char`
    num_characters: int = 0  # that were encoded; this and the next one only for a tokenizer that can lose characters
    character_differences: dict[str, int] = field(default_factory=dict)  # as in CharacterLoss


@dataclass(frozen=True, kw_only=True)
class CountReceipt(PartitionReceipt):
    """The result of `count_partition`."""

    TASK: ClassVar[str] = "count"

    num_characters: list[int | None]  # of each span; None for a whole file, whose characters need not be counted first


@dataclass(frozen=True, kw_only=True)
class LinesReceipt(PartitionReceipt):
    """The result of `count_lines`."""

    TASK: ClassVar[str] = "count_lines"


@dataclass(frozen=True, kw_only=True)
class PrepareReceipt(PartitionReceipt):
    """The result of `prepare_partition`."""

    TASK: ClassVar[str] = "prepare"

    text_bytes: int  # UTF-8 bytes of all documents
    num_positions: list[tuple[int, int]]  # of each span: input file number, number of positions of its documents
    dropped: dict[str, int]  # reason -> number of documents that were dropped, or repaired (stats.py)
    cleaned: dict[str, int]  # cleaning rule -> number of documents that it changed
    filters: list[FilterCounts] = field(default_factory=list)  # the counts of each filter of the recipe
    removed_lines: dict[str, int] = field(default_factory=dict)  # the counts of LineRemover
    reasons: list[RejectReason] = field(default_factory=list)  # why records were dropped or changed
    encoding: EncodingReport | None  # None if the tokenizer is yet to be trained


@dataclass(frozen=True, kw_only=True)
class EncodeReceipt(PartitionReceipt):
    """The result of `encode_partition`."""

    TASK: ClassVar[str] = "encode"

    encoding: EncodingReport


def write_receipt(path: Path, receipt: Any) -> None:
    """Write the dataclass `receipt` to a temporary file, and rename the file to `path`."""
    fields = dataclasses.asdict(receipt)
    temporary = make_partial_path(path)
    temporary.write_bytes(canonical_json({"receipt": fields, "xxh3": _hash_fields(fields)}))
    os.replace(temporary, path)


def read_receipt(path: Path, receipt_type: type[T]) -> T | None:
    """Return the receipt in `path` as a `receipt_type`, or None if it is missing or damaged."""
    try:
        stored = parse_json(path.read_bytes())
        if not isinstance(stored, dict) or stored.get("xxh3") != _hash_fields(stored.get("receipt")):
            return None
        receipt: T = _convert(stored["receipt"], receipt_type)
    except (FileNotFoundError, ValueError):
        return None
    return receipt


def _hash_fields(fields: Any) -> str:
    return str(xxhash.xxh3_64(canonical_json(fields)).hexdigest())


def _convert(value: Any, expected: Any) -> Any:
    """Convert the JSON `value` to the type `expected`. Raises ValueError if it has another type."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is types.UnionType:  # an optional value
        return None if value is None else _convert(value, arguments[0])
    if origin is dict and isinstance(value, dict):
        return {key: _convert(item, arguments[1]) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_convert(item, arguments[0]) for item in value]
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(item, kind) for item, kind in zip(value, arguments, strict=True))
    field_types = _get_field_types(expected)
    if field_types and isinstance(value, dict) and value.keys() == field_types.keys():
        return expected(**{name: _convert(value[name], kind) for name, kind in field_types.items()})
    if type(value) is expected:
        return value
    raise ValueError(f"found {type(value).__name__}, expected {expected}")


@functools.cache
def _get_field_types(expected: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, or {} if `expected` is not a dataclass."""
    if not dataclasses.is_dataclass(expected):
        return {}
    hints = typing.get_type_hints(expected)
    return {field.name: hints[field.name] for field in dataclasses.fields(expected)}
