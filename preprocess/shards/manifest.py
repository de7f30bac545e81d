"""Typed dataclasses for manifest.json, and the function that checks and parses it.

A manifest is untrusted: it may be damaged, edited, or crafted to make a reader open files outside
the build's folder. So every key that a reader uses is checked once, here, and code that has a
`Manifest` needs no further checks. The names of the fields are the keys of the JSON object, so each
key is written only once. docs/shard_format.md describes the keys. Uses only the standard library.

The checks are: the type of each value, sums over shards, the numbering of shards, and that ids are
below `vocab_size`. `read_manifest` (manifest_file.py) checks the checksum.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from preprocess.shards.files import PLAIN_NAME, JsonObject, canonical_json

SPLITS = ("train", "val")
ROLES = ("bos_id", "eot_id", "pad_id", "unk_id")
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_INTEGER = (1 << 63) - 1
MAX_VOCAB_SIZE = 1 << 32  # ids are stored in at most 32 bits
MAX_NAME_CHARACTERS = 255
MAX_SHOWN_CHARACTERS = 40  # of a value that an error message repeats
# The build_id identifies the bytes of a build; these keys do not change them.
NOT_IN_BUILD_ID = ("name", "build_id", "made_with", "checksum")
ORIGIN_KEYS = ("url", "version")  # of an entry of `sources`; not in the build_id either
SOURCES_AT_ONCE = 1 << 9


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its files, their hashes, and the counts of what they contain."""

    file: str  # the name of the .bin file; .ends and .docs are stored beside it
    tokens: int
    documents: int
    max_id: int  # the largest token id; -1 if the shard has no tokens
    bytes: int  # of the .bin file
    sha256: str  # of the .bin file
    ends_sha256: str
    docs_sha256: str
    mask_sha256: str | None = None  # of the loss mask; None if the build has none
    loss_tokens: int | None = None  # whose bit in the loss mask is 1

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file, by suffix."""
        hashes = {"bin": self.sha256, "ends": self.ends_sha256, "docs": self.docs_sha256}
        return hashes if self.mask_sha256 is None else hashes | {"mask": self.mask_sha256}

    def as_dict(self) -> JsonObject:
        """Return the entry as a JSON object, without the keys of a loss mask if there is none."""
        return {key: value for key, value in asdict(self).items() if value is not None}


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
    settings: JsonObject  # what it was trained with, or its encoding


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    The contents of `recipe`, `sources`, `made_with` and `tokenizer.settings` are not checked.
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
        """Return the manifest as a JSON object, without the keys that `parse_manifest` ignored.

        Its lists and objects are those of the manifest: a copy of a million sources would take as much memory.
        """
        splits = {
            split: {**vars(entry), "shards": [shard.as_dict() for shard in entry.shards]}
            for split, entry in self.splits.items()
        }
        return {**vars(self), "tokenizer": vars(self.tokenizer), "splits": splits}


def parse_manifest(value: Any) -> Manifest:
    """Return the manifest in `value`, the parsed JSON of manifest.json.

    Raises TypeError that names the first key found that is missing or has a value that no builder
    writes. Keys that are not fields are ignored.
    """
    fields = _read_fields(Manifest, value, "it")
    tokenizer = TokenizerEntry(**_read_fields(TokenizerEntry, fields["tokenizer"], "tokenizer"))
    _check_names(fields, tokenizer)
    _check_ids(fields)
    if set(fields["splits"]) != set(SPLITS):
        found = ", ".join(map(_shorten, sorted(fields["splits"])[:3]))
        raise TypeError(f"its splits are {found}, expected {' and '.join(SPLITS)}")
    splits = {split: _parse_split(split, fields["splits"][split]) for split in SPLITS}
    # Builds that are opened together, to merge them, may have the same 200,000 languages: keep each text once.
    languages = {sys.intern(number): sys.intern(tag) for number, tag in fields["languages"].items()}
    return Manifest(**fields | {"tokenizer": tokenizer, "splits": splits, "languages": languages})


def hash_manifest(value: JsonObject) -> tuple[str, str]:
    """Return the build_id and the checksum of a manifest, the JSON object `value`.

    The build_id is the SHA-256 of all keys except NOT_IN_BUILD_ID, without ORIGIN_KEYS of the
    sources. The checksum is the SHA-256 of all keys except `checksum`. Both hash canonical JSON and
    are hexadecimal.
    """
    build_id, checksum = _ObjectDigest(NOT_IN_BUILD_ID), _ObjectDigest(("checksum",))
    for key in sorted(value):
        for digest in (build_id, checksum):
            digest.begin(key)
        for part, without_origins in _format_value(key, value[key]):
            build_id.update(key, without_origins)
            checksum.update(key, part)
    return build_id.finish(), checksum.finish()


class _ObjectDigest:
    """The SHA-256 of the canonical JSON of an object without some of its keys, which arrives in parts."""

    def __init__(self, omitted: tuple[str, ...]) -> None:
        self._omitted, self._digest, self._separator = omitted, hashlib.sha256(), b"{"

    def begin(self, key: str) -> None:
        if key not in self._omitted:
            self._digest.update(self._separator + canonical_json(key) + b":")
            self._separator = b","

    def update(self, key: str, part: bytes) -> None:
        """Add a part of the value of `key`."""
        if key not in self._omitted:
            self._digest.update(part)

    def finish(self) -> str:
        if self._separator == b"{":  # no keys
            self._digest.update(b"{")
        self._digest.update(b"}")
        return self._digest.hexdigest()


def _format_value(key: str, value: Any) -> Iterator[tuple[bytes, bytes]]:
    """Yield the canonical JSON of the value of a key in parts, and the same without ORIGIN_KEYS.

    `sources` may list a million input files, whose JSON would take as much memory as they do. Each part is
    formatted once for both hashes.
    """
    if key != "sources" or not isinstance(value, list):
        data = canonical_json(value)
        yield data, data
        return
    yield b"[", b"["
    for start in range(0, len(value), SOURCES_AT_ONCE):
        entries = value[start : start + SOURCES_AT_ONCE]
        separator, data = b"," if start else b"", canonical_json(entries)[1:-1]
        contents = drop_origins(entries)
        yield separator + data, separator + (data if contents == entries else canonical_json(contents)[1:-1])
    yield b"]", b"]"


def drop_origins(sources: list[Any]) -> list[Any]:
    """Return the entries of `sources` without the keys that say where remote files came from.

    What remains identifies the content, so a build of the same files from another server, from a
    mirror or from the disk is the same build.
    """
    return [
        {key: value for key, value in entry.items() if key not in ORIGIN_KEYS} if isinstance(entry, dict) else entry
        for entry in sources
    ]


def _check_names(fields: JsonObject, tokenizer: TokenizerEntry) -> None:
    name = fields["name"]
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise TypeError(f"it has name {_shorten(name)}")
    for file, sha256 in tokenizer.files.items():
        # The name is joined to the build's folder, so it must not contain a path.
        if not PLAIN_NAME.fullmatch(file):
            raise TypeError(f"it names the tokenizer file {_shorten(file)}, which is not a plain file name")
        _check_sha256(sha256, file)
    for number, tag in fields["languages"].items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", number) or not isinstance(tag, str):
            raise TypeError(f"languages gives {_shorten(number)} the tag {_shorten(tag)}")
    if fields["stats_sha256"]:  # a stream has no statistics
        _check_sha256(fields["stats_sha256"], "stats_sha256")


def _check_ids(fields: JsonObject) -> None:
    vocab_size = fields["vocab_size"]
    if vocab_size > MAX_VOCAB_SIZE:
        raise TypeError(f"it has vocab_size {vocab_size:,}, expected at most {MAX_VOCAB_SIZE:,}")
    for token, i in fields["special_tokens"].items():
        if type(i) is not int or not 0 <= i < vocab_size:
            raise TypeError(
                f"special_tokens gives {_shorten(token)} the id {_shorten(i)}, expected one below vocab_size"
            )
    for key in ROLES:
        if fields[key] is not None and not 0 <= fields[key] < vocab_size:
            raise TypeError(f"{key} is {fields[key]}, expected one below vocab_size")


def _parse_split(split: str, value: Any) -> SplitEntry:
    fields = _read_fields(SplitEntry, value, f"splits.{split}")
    shards = []
    for number, shard in enumerate(fields["shards"]):
        entry = ShardEntry(**_read_fields(ShardEntry, shard, f"a shard of {split}"))
        # The name is joined to the build's folder, so it must not contain a path.
        if entry.file != (expected := f"{split}-{number:05d}.bin"):
            raise TypeError(f"it names the file {_shorten(entry.file)}, expected {expected}")
        for sha256 in entry.hashes().values():
            _check_sha256(sha256, entry.file)
        if (entry.mask_sha256 is None) != (entry.loss_tokens is None) or (entry.loss_tokens or 0) > entry.tokens:
            raise TypeError(f"it has the loss_tokens {_shorten(entry.loss_tokens)} of {entry.file}")
        shards.append(entry)
    for key in ("tokens", "documents"):
        if fields[key] != (total := sum(getattr(entry, key) for entry in shards)):
            raise TypeError(f"splits.{split} has {fields[key]:,} {key}, its shards have {total:,}")
    return SplitEntry(**fields | {"shards": tuple(shards)})


def _check_sha256(value: Any, what: str) -> None:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise TypeError(f"it has the sha256 {_shorten(value)} of {what}")


def _read_fields(cls: type, value: Any, what: str) -> JsonObject:
    """Return the value of each field of the dataclass `cls` from the JSON object `value`.

    Raises TypeError if `value` is not an object, lacks a field that has no default, or has a value of
    another type than the field's annotation. Booleans are not integers. Integers are from 0, or from -1 for max_id,
    to 2**63 - 1.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{what} is {_shorten(value)}, expected an object")
    fields = {}
    for key, types in _json_types_of(cls).items():
        if key not in value and hasattr(cls, key):  # the default
            continue
        if key not in value:
            raise TypeError(f"{what} lacks {key}")
        found = value[key]
        if not isinstance(found, types) or type(found) is bool:
            raise TypeError(f"{what} has {key} {_shorten(found)}")
        if type(found) is int and not (-1 if key == "max_id" else 0) <= found <= MAX_INTEGER:
            raise TypeError(f"{what} has {key} {_shorten(found)}")
        fields[key] = found
    return fields


@cache  # a build can have thousands of shards
def _json_types_of(cls: type) -> dict[str, tuple[type, ...]]:
    return {key: _json_types(annotation) for key, annotation in get_type_hints(cls).items()}


def _json_types(annotation: Any) -> tuple[type, ...]:
    """Return the Python types that a JSON parser returns for a field with `annotation`."""
    if isinstance(annotation, UnionType):
        return get_args(annotation)
    if is_dataclass(annotation):
        return (dict,)
    origin = get_origin(annotation) or annotation
    return (list,) if origin is tuple else (origin,)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 3] + "..."
