"""Typed dataclasses for manifest.json, and the function that checks and parses it.

A manifest is untrusted: it may be damaged, edited, or crafted to make a reader open files outside
the build's folder. So every key that a reader uses is checked once, here, and code that has a
`Manifest` needs no further checks. The names of the fields are the keys of the JSON object, so each
key is written only once. docs/shard_format.md describes the keys. Uses only the standard library.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from preprocess.shards.files import PLAIN_NAME, JsonObject

SPLITS = ("train", "val")
MAX_SHOWN_CHARACTERS = 40  # of a value that an error message repeats


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its three files, their hashes, and the counts of what they contain."""

    file: str  # the name of the .bin file; .ends and .docs are stored beside it
    tokens: int
    documents: int
    max_id: int  # the largest token id; -1 if the shard has no tokens
    bytes: int  # of the .bin file
    sha256: str  # of the .bin file
    ends_sha256: str
    docs_sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """One split: its totals and its shards, in order."""

    tokens: int
    documents: int
    text_bytes: int  # UTF-8 bytes of the cleaned text
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class TokenizerEntry:
    """The tokenizer, whose files are in the folder tokenizer/."""

    kind: str
    files: dict[str, str]  # file name -> SHA-256
    settings: JsonObject  # of its training


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    The contents of the dictionaries and of `sources` are not checked, except `special_tokens`.
    """

    format: str
    version: int
    name: str
    dtype: str
    vocab_size: int
    bos_id: int | None
    eot_id: int | None
    pad_id: int | None
    unk_id: int | None
    special_tokens: dict[str, int]
    tokenizer: TokenizerEntry
    splits: dict[str, SplitEntry]
    recipe: JsonObject
    sources: list[Any]
    languages: dict[str, str]  # number -> tag
    stats_sha256: str
    build_id: str
    made_with: dict[str, str]  # library -> version
    checksum: str

    def as_dict(self) -> JsonObject:
        """Return the JSON object that `parse_manifest` parses. Keys that it ignored are missing."""
        return asdict(self)


def parse_manifest(value: Any) -> Manifest:
    """Return the manifest in `value`, the parsed JSON of manifest.json.

    Raises TypeError with the first key that is missing or has a value that no builder writes. Keys
    that are not fields are ignored.
    """
    fields = _read_fields(Manifest, value, "it")
    tokenizer = TokenizerEntry(**_read_fields(TokenizerEntry, fields["tokenizer"], "tokenizer"))
    _check_ids(fields)
    for name in tokenizer.files:
        if not PLAIN_NAME.fullmatch(name):
            raise TypeError(f"it names the tokenizer file {name!r}, which is not a plain file name")
    if set(fields["splits"]) != set(SPLITS):
        raise TypeError(f"its splits are {', '.join(sorted(fields['splits']))}, expected {' and '.join(SPLITS)}")
    splits = {split: _parse_split(split, fields["splits"][split]) for split in SPLITS}
    return Manifest(**fields | {"tokenizer": tokenizer, "splits": splits})


def _check_ids(fields: JsonObject) -> None:
    vocab_size = fields["vocab_size"]
    for token, i in fields["special_tokens"].items():
        if type(i) is not int or not 0 <= i < vocab_size:
            raise TypeError(f"special_tokens gives {token!r} the id {i!r}, expected one below vocab_size")
    for key in ("bos_id", "eot_id", "pad_id", "unk_id"):
        if fields[key] is not None and not 0 <= fields[key] < vocab_size:
            raise TypeError(f"{key} is {fields[key]}, expected one below vocab_size")


def _parse_split(split: str, value: Any) -> SplitEntry:
    fields = _read_fields(SplitEntry, value, f"splits.{split}")
    shards = tuple(ShardEntry(**_read_fields(ShardEntry, shard, f"a shard of {split}")) for shard in fields["shards"])
    for shard in shards:
        # The name is joined to the build's folder, so it must not contain a path.
        if not re.fullmatch(rf"{split}-\d{{5}}\.bin", shard.file):
            raise TypeError(f"it names the file {shard.file!r}, expected {split}-NNNNN.bin")
    return SplitEntry(**fields | {"shards": shards})


def _read_fields(cls: type, value: Any, what: str) -> JsonObject:
    """Return the value of each field of the dataclass `cls` from the JSON object `value`.

    Raises TypeError if `value` is not an object, lacks a field, or has a value of another type than
    the field's annotation. Booleans are not integers, and no integer is below -1.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{what} is {_shorten(value)}, expected an object")
    fields = {}
    for key, annotation in get_type_hints(cls).items():
        if key not in value:
            raise TypeError(f"{what} lacks {key}")
        found = value[key]
        if not isinstance(found, _json_types(annotation)) or type(found) is bool or (type(found) is int and found < -1):
            raise TypeError(f"{what} has {key} {_shorten(found)}")
        fields[key] = found
    return fields


def _json_types(annotation: Any) -> tuple[type, ...]:
    """Return the types that a JSON parser gives for the values of a field with `annotation`."""
    if isinstance(annotation, UnionType):
        return get_args(annotation)
    if is_dataclass(annotation):
        return (dict,)
    origin = get_origin(annotation) or annotation
    return (list,) if origin is tuple else (origin,)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."
