"""The shards on disk, version 1: names, dtypes, manifest, reader. writer.py writes them, verify.py checks them.

docs/shard_format.md says it in prose. This file is the only place that knows the layout, and it imports nothing but
NumPy and the standard library, so that training on a machine with neither Arrow nor a tokenizer works.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import PLAIN_NAME, canonical_json, parse_json, readable_json, sha256_bytes

FORMAT = "folio-shards"
VERSION = 1
MANIFEST = "manifest.json"
STATS = "stats.json"
BUILD_LOG = "build_log.json"
TOKENIZER_DIR = "tokenizer"
SPLITS = ("train", "val")
CONTROL_FIELDS = ("author", "city", "year")  # also their order in front of a document
BUILD_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
END_DTYPE = np.dtype("<u8")
DOC_DTYPE = np.dtype([("hash", "u1", 16), ("source", "<u4"), ("lang", "<u4"), ("position", "<u8")])
TOKEN_DTYPES = ("<u2", "<u4")
MAX_UINT16_VOCAB = 1 << 16
# `build_id` names what the bytes are; these keys say only what the build is called and what made it.
NOT_IN_BUILD_ID = ("name", "build_id", "made_with", "checksum")


# What each key must be; a reader that finds anything else refuses the build. `name` and `bytes` of `sources` are free.
_ID = (int, type(None))
MANIFEST_TYPES: dict[str, type | tuple[type, ...]] = {
    "format": str, "version": int, "name": str, "dtype": str, "vocab_size": int, "bos_id": _ID, "eot_id": _ID, "pad_id": _ID, "unk_id": _ID,
    "special_tokens": dict, "tokenizer": dict, "splits": dict, "recipe": dict, "sources": list, "languages": dict, "stats_sha256": str,
    "build_id": str, "made_with": dict, "checksum": str,
}  # fmt: skip
TOKENIZER_TYPES = {"kind": str, "files": dict, "settings": dict}
SPLIT_TYPES = {"tokens": int, "documents": int, "text_bytes": int, "shards": list}
SHARD_TYPES = {
    "file": str, "tokens": int, "documents": int, "max_id": int, "bytes": int, "sha256": str, "ends_sha256": str, "docs_sha256": str,
}  # fmt: skip


class ShardError(FolioError):
    """A build that is not there, not whole, or not of a version this reader knows."""


def token_dtype(vocab_size: int) -> str:
    """The dtype string of a vocabulary: `<u2` if and only if every id below `vocab_size` fits 16 bits."""
    return "<u2" if vocab_size <= MAX_UINT16_VOCAB else "<u4"


def file_sizes(num_tokens: int, num_documents: int, dtype: np.dtype) -> dict[str, int]:
    """Bytes of the three files of a shard with tokens of `dtype`, by suffix."""
    return {
        "bin": num_tokens * dtype.itemsize,
        "ends": num_documents * END_DTYPE.itemsize,
        "docs": num_documents * DOC_DTYPE.itemsize,
    }


def format_control_token(field: str, value: str | int) -> str:
    """`<author_Anna_Akimova>`, `<year_1623>`: white space as `_`."""
    name = f"{value:04d}" if isinstance(value, int) else "".join("_" if c.isspace() else c for c in value)
    return f"<{field}_{name}>"


def seal(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `build_id` and `checksum` computed; the result is what `manifest.json` holds."""
    manifest = {k: v for k, v in fields.items() if k not in ("build_id", "checksum")}
    manifest["build_id"] = build_id_of(manifest)
    manifest["checksum"] = sha256_bytes(canonical_json(manifest))
    return manifest


def build_id_of(manifest: dict[str, Any]) -> str:
    return sha256_bytes(canonical_json({k: v for k, v in manifest.items() if k not in NOT_IN_BUILD_ID}))


def default_root() -> Path:
    """Where builds go and are looked for first: `$FOLIO_SHARDS`, else `./shards`."""
    return Path(os.environ.get("FOLIO_SHARDS") or "shards")


def check_name(name: str) -> str:
    """`name`, if a build may be called so. Raises MisuseError."""
    if not BUILD_NAME.fullmatch(name):
        raise MisuseError(
            f"a build cannot be named {name!r}: wanted at most 64 of a-z 0-9 . _ -, the first a letter or digit; choose another name"
        )
    return name


def find_build(where: str) -> Path:
    """The folder of a build: a value with a path separator is one, any other is looked up by name.

    Raises MisuseError that lists what was tried.
    """
    if "/" in where or os.sep in where:
        tried = [Path(where)]
    else:
        check_name(where)
        tried = list(dict.fromkeys([default_root() / where, Path("shards") / where]))
    for folder in tried:
        if (folder / MANIFEST).is_file():
            return folder
    places = " and ".join(str(t) for t in tried)
    raise MisuseError(
        f"no build {where!r}: no {MANIFEST} in {places}; "
        "`preprocess list` shows what is there, `preprocess build --help` says how to make one"
    )


def list_builds(root: Path) -> list[Path]:
    """Every folder under `root` that holds a manifest, by name."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if BUILD_NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


@dataclass(frozen=True)
class Shard:
    """One shard's tokens and document ends, mapped, not read."""

    path: Path
    tokens: np.ndarray  # (N,) of the build's dtype, read-only
    ends: np.ndarray  # (D,) u8, exclusive ends


def read_manifest(folder: Path) -> dict[str, Any]:
    """The parsed manifest of the build in `folder`, its format, version and keys checked. Raises ShardError."""
    path = folder / MANIFEST
    try:
        manifest = parse_json(path.read_bytes())
        readable_json(manifest)  # what cannot be spelled again, such as half a surrogate pair, no builder wrote
    except FileNotFoundError as e:
        raise ShardError(
            f"{folder} is no build: it has no {MANIFEST}; name a build that `preprocess list` shows"
        ) from e
    except (ValueError, RecursionError) as e:
        raise ShardError(f"{path} is not JSON ({e}); copy the build again or rebuild it") from e
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ShardError(f"{path} has format {got!r}, wanted {FORMAT!r}; this is not a Folio build")
    if manifest.get("version") != VERSION:
        raise ShardError(
            f"{path} has version {manifest.get('version')!r}, this Folio reads version {VERSION}; install the Folio that made it"
        )
    try:
        _check_types(manifest)
    except TypeError as e:
        raise ShardError(f"{path} is malformed: {e}; copy the build again or rebuild it") from e
    return manifest


def read_vouched(path: Path, expected_sha256: str) -> bytes:
    """The content of a build's file that its manifest vouches for. Raises ShardError where it is missing or another."""
    if not path.is_file():
        raise ShardError(f"{path} is missing; copy the build again or rebuild it")
    data = path.read_bytes()
    if sha256_bytes(data) != expected_sha256:
        raise ShardError(f"{path} is not the file its manifest vouches for; copy the build again or rebuild it")
    return data


def _check_types(manifest: dict[str, Any]) -> None:
    _want(manifest, MANIFEST_TYPES, "it")
    _want(manifest["tokenizer"], TOKENIZER_TYPES, "tokenizer")
    for name, i in manifest["special_tokens"].items():
        if type(i) is not int or not 0 <= i < manifest["vocab_size"]:
            raise TypeError(f"special_tokens gives {name!r} the id {i!r}, wanted one below vocab_size")
    for key in ("bos_id", "eot_id", "pad_id", "unk_id"):
        if manifest[key] is not None and not 0 <= manifest[key] < manifest["vocab_size"]:
            raise TypeError(f"{key} is {manifest[key]}, wanted one below vocab_size")
    for name in manifest["tokenizer"]["files"]:
        if not PLAIN_NAME.fullmatch(name):
            raise TypeError(f"it names the tokenizer file {name!r}, which is no plain file name")
    if set(manifest["splits"]) != set(SPLITS):
        raise TypeError(f"its splits are {', '.join(sorted(manifest['splits']))}, wanted {' and '.join(SPLITS)}")
    for split in SPLITS:
        entry = manifest["splits"][split]
        _want(entry, SPLIT_TYPES, f"splits.{split}")
        for shard in entry["shards"]:
            _want(shard, SHARD_TYPES, f"a shard of {split}")
            if not re.fullmatch(rf"{split}-\d{{5}}\.bin", shard["file"]):
                raise TypeError(f"it names the file {shard['file']!r}, not {split}-NNNNN.bin")


def _want(value: Any, types: Mapping[str, type | tuple[type, ...]], what: str) -> None:
    """Raise TypeError unless `value` is an object with a value of the right type for each key, no number below −1."""
    if not isinstance(value, dict):
        raise TypeError(f"{what} is {_short(value)}, wanted an object")
    for key, kind in types.items():
        if key not in value:
            raise TypeError(f"{what} lacks {key}")
        got = value[key]
        if not isinstance(got, kind) or isinstance(got, bool) or (isinstance(got, int) and got < -1):
            raise TypeError(f"{what} has {key} {_short(got)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Build:
    """A build opened for reading: the manifest, and the shards' tokens as memory maps.

    Opening reads no token: it checks format, version, dtype and that every file is there with the size the manifest
    gives it. Raises ShardError, or MisuseError when there is no such build.
    """

    def __init__(self, where: str | Path) -> None:
        self.folder = where if isinstance(where, Path) else find_build(where)
        self.manifest = read_manifest(self.folder)
        self._check()

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def build_id(self) -> str:
        return str(self.manifest["build_id"])

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest["dtype"])

    def _check(self) -> None:
        m = self.manifest
        if m["dtype"] not in TOKEN_DTYPES:
            raise ShardError(
                f"{self.folder / MANIFEST} has dtype {m['dtype']!r}, wanted one of {', '.join(TOKEN_DTYPES)}; rebuild it"
            )
        for split in SPLITS:
            for entry in m["splits"][split]["shards"]:
                if entry["max_id"] >= m["vocab_size"]:
                    raise ShardError(
                        f"{entry['file']} holds id {entry['max_id']}, its vocabulary ends at {m['vocab_size'] - 1}; rebuild it"
                    )
                path = self.folder / entry["file"]
                for suffix, size_bytes in file_sizes(entry["tokens"], entry["documents"], self.dtype).items():
                    self._check_file(path.with_suffix(f".{suffix}"), size_bytes)
                if entry["bytes"] != entry["tokens"] * self.dtype.itemsize:
                    raise ShardError(
                        f"{entry['file']} has bytes that are not tokens × {self.dtype.itemsize} in its manifest; rebuild it"
                    )
        for name in (STATS, *(f"{TOKENIZER_DIR}/{file}" for file in m["tokenizer"]["files"])):
            self._check_file(self.folder / name, None)

    def _check_file(self, path: Path, size_bytes: int | None) -> None:
        if not path.is_file():
            raise ShardError(f"{path} is missing; copy the build again or rebuild it")
        if size_bytes is not None and path.stat().st_size != size_bytes:
            raise ShardError(
                f"{path} has {path.stat().st_size:,} bytes, its manifest says {size_bytes:,}; copy the build again or rebuild it"
            )

    def shards(self, split: str) -> list[Shard]:
        """The shards of `split`, in order, mapped read-only. An empty file maps to an empty array."""
        return [self.map_shard(entry) for entry in self.manifest["splits"][split]["shards"]]

    def map_shard(self, entry: dict[str, Any]) -> Shard:
        """One shard, by its entry in the manifest."""
        path = self.folder / entry["file"]
        return Shard(path, map_array(path, self.dtype), map_array(path.with_suffix(".ends"), END_DTYPE))

    def docs(self, split: str) -> np.ndarray:
        """The document table of `split`: (D,) of DOC_DTYPE, mapped where there is one shard."""
        tables = [
            map_array((self.folder / e["file"]).with_suffix(".docs"), DOC_DTYPE)
            for e in self.manifest["splits"][split]["shards"]
        ]
        return np.concatenate(tables) if len(tables) != 1 else tables[0]

    def document(self, split: str, number: int) -> np.ndarray:
        """The ids of document `number` of `split`, counted from 0. Raises MisuseError outside the split."""
        remaining = number
        for shard in self.shards(split) if number >= 0 else []:
            if remaining < len(shard.ends):
                begin = int(shard.ends[remaining - 1]) if remaining else 0
                return shard.tokens[begin : int(shard.ends[remaining])]
            remaining -= len(shard.ends)
        count = self.manifest["splits"][split]["documents"]
        raise MisuseError(f"no document {number} in the {split} split of {self.name}: it has {count:,}, counted from 0")


def map_array(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file as a read-only array; an empty file cannot be mapped and gives an empty one."""
    try:
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
    except OSError as e:
        if e.errno != errno.EMFILE:
            raise
        # A map holds on to its file: two for each shard, so that a usual limit of 1,024 is met at 50 billion tokens.
        raise ShardError(
            f"{path} is one file more than this process may open; allow it more, as `ulimit -n 65536` does"
        ) from e


def check_no_build(output: Path, why: str) -> None:
    """Raise MisuseError where other files than a build's cannot be written to `output`. `why`: what a build has against them."""
    if (output / MANIFEST).exists():
        raise MisuseError(f"{output} is a build, {why}; choose another --output")
    if output.is_file():
        raise MisuseError(f"{output} is a file; name a folder")
