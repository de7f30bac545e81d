"""The shards on disk, version 1: names, dtypes, manifest, writer, reader, verifier.

docs/shard_format.md says it in prose. This file is the only place that knows the layout, and it imports nothing but
NumPy and the standard library, so that training on a machine with neither Arrow nor a tokenizer works.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from preprocess.errors import FolioError, MisuseError

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
HASH_CHUNK_BYTES = 1 << 20
# `build_id` names what the bytes are; these keys say only what the build is called and what made it.
NOT_IN_BUILD_ID = ("name", "build_id", "made_with", "checksum")
MANIFEST_KEYS = {
    "format", "version", "name", "dtype", "vocab_size", "bos_id", "eot_id", "pad_id", "unk_id", "special_tokens", "tokenizer",
    "splits", "recipe", "sources", "languages", "stats_sha256", "build_id", "made_with", "checksum",
}  # fmt: skip


class ShardError(FolioError):
    """A build that is not there, not whole, or not of a version this reader knows."""


def token_dtype(vocab_size: int) -> str:
    """The dtype string of a vocabulary: `<u2` if and only if every id below `vocab_size` fits 16 bits."""
    return "<u2" if vocab_size <= MAX_UINT16_VOCAB else "<u4"


def spell_control_token(field: str, value: str | int) -> str:
    """`<author_Anna_Akimova>`, `<year_1623>`: white space as `_`."""
    name = f"{value:04d}" if isinstance(value, int) else "".join("_" if c.isspace() else c for c in value)
    return f"<{field}_{name}>"


def canonical_json(value: Any) -> bytes:
    """The one spelling that hashes are taken of: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def readable_json(value: Any) -> bytes:
    """The one spelling that files hold: sorted keys, two spaces, a final line feed."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system lets a folder be opened (Windows does not)."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durable(path: Path, data: bytes) -> None:
    """Write `data` aside, fsync, rename onto `path`: a crash leaves the old file or the new one, never half."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def seal(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `build_id` and `checksum` computed; the result is what `manifest.json` holds."""
    manifest = {k: v for k, v in fields.items() if k not in ("build_id", "checksum")}
    manifest["build_id"] = build_id_of(manifest)
    manifest["checksum"] = sha256_bytes(canonical_json(manifest))
    return manifest


def build_id_of(manifest: dict[str, Any]) -> str:
    return sha256_bytes(canonical_json({k: v for k, v in manifest.items() if k not in NOT_IN_BUILD_ID}))


class _HashedFile:
    """A file that is hashed while it is written, so that sealing reads nothing back."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 (closed by finish or abandon)
        self._digest = hashlib.sha256()

    def write(self, data: np.ndarray) -> None:
        view = np.ascontiguousarray(data).view(np.uint8).data
        self._file.write(view)
        self._digest.update(view)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        self._file.close()


class ShardWriter:
    """Writes the shards of one split: tokens, ends and document table, hashed as they go.

    A context manager: leaving it by an exception closes the files and records nothing. `finish` returns the
    manifest's entry of the split. A shard ends at the first document's end at which it holds `shard_tokens` or more.
    """

    def __init__(self, folder: Path, split: str, *, vocab_size: int, shard_tokens: int) -> None:
        self._folder, self._split, self._vocab_size, self._shard_tokens = folder, split, vocab_size, shard_tokens
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._shards: list[dict[str, Any]] = []
        self._files: dict[str, _HashedFile] = {}
        self._text_bytes = self._tokens = self._documents = 0
        self._max_id = -1

    def append(self, ids: np.ndarray, ends: np.ndarray, docs: np.ndarray, *, text_bytes: int) -> None:
        """Add whole documents.

        `ids`: (N,) any unsigned dtype, flat. `ends`: (D,) exclusive end of each document in `ids`.
        `docs`: (D,) of DOC_DTYPE. `text_bytes`: UTF-8 bytes of the documents' cleaned text.
        Raises ValueError for an id outside the vocabulary, FolioError when the disk is full.
        """
        if len(ends) != len(docs) or (len(ends) and int(ends[-1]) != len(ids)) or (not len(ends) and len(ids)):
            raise ValueError(f"{len(ids)} ids, {len(ends)} ends and {len(docs)} documents do not belong together")
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise ValueError(f"id {int(ids.max())} is outside the vocabulary of {self._vocab_size}")
        self._text_bytes += text_bytes
        first = 0
        while first < len(ends):
            begin = int(ends[first - 1]) if first else 0
            # The shard is full at the first end that takes it to shard_tokens: that document is its last.
            room = self._shard_tokens - self._tokens
            last = min(int(np.searchsorted(ends, begin + room, side="left")), len(ends) - 1)
            self._write(ids[begin : int(ends[last])], ends[first : last + 1] - begin, docs[first : last + 1])
            if self._tokens >= self._shard_tokens:
                self._close_shard()
            first = last + 1

    def _write(self, ids: np.ndarray, ends: np.ndarray, docs: np.ndarray) -> None:
        if not self._files:
            stem = f"{self._split}-{len(self._shards):05d}"
            for suffix in ("bin", "ends", "docs"):
                self._files[suffix] = _HashedFile(self._folder / f"{stem}.{suffix}")
        self._files["bin"].write(ids.astype(self._dtype, copy=False))
        self._files["ends"].write((ends.astype(END_DTYPE) + np.uint64(self._tokens)).astype(END_DTYPE))
        self._files["docs"].write(docs)
        self._tokens += len(ids)
        self._documents += len(ends)
        self._max_id = max(self._max_id, int(ids.max()) if len(ids) else -1)

    def _close_shard(self) -> None:
        hashes = {suffix: file.finish() for suffix, file in self._files.items()}
        self._shards.append(
            {
                "file": f"{self._split}-{len(self._shards):05d}.bin",
                "tokens": self._tokens,
                "documents": self._documents,
                "max_id": self._max_id,
                "bytes": self._tokens * self._dtype.itemsize,
                "sha256": hashes["bin"],
                "ends_sha256": hashes["ends"],
                "docs_sha256": hashes["docs"],
            }
        )
        self._files, self._tokens, self._documents, self._max_id = {}, 0, 0, -1

    def finish(self) -> dict[str, Any]:
        """Close the last shard and return `splits.<split>` of the manifest."""
        if self._files:
            self._close_shard()
        return {
            "tokens": sum(s["tokens"] for s in self._shards),
            "documents": sum(s["documents"] for s in self._shards),
            "text_bytes": self._text_bytes,
            "shards": self._shards,
        }

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.abandon()


def default_root() -> Path:
    """Where builds go and are looked for first: `$FOLIO_SHARDS`, else `./shards`."""
    return Path(os.environ.get("FOLIO_SHARDS") or "shards")


def check_name(name: str) -> str:
    if not BUILD_NAME.fullmatch(name):
        raise MisuseError(
            f"a build cannot be named {name!r}: wanted at most 64 of a-z 0-9 . _ -, the first a letter or digit; choose another --name"
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
        f"no build {where!r}: no {MANIFEST} in {places}; `preprocess list` shows what is there, `preprocess build --corpus NAME` makes one"
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
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as e:
        raise ShardError(f"{folder} is no build: it has no {MANIFEST}; name a build that `preprocess list` shows") from e
    except (ValueError, RecursionError) as e:
        raise ShardError(f"{path} is not JSON ({e}); copy the build again or rebuild it") from e
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ShardError(f"{path} has format {got!r}, wanted {FORMAT!r}; this is not a Folio build")
    if manifest.get("version") != VERSION:
        raise ShardError(
            f"{path} has version {manifest.get('version')!r}, this Folio reads version {VERSION}; install the Folio that made it"
        )
    if missing := sorted(MANIFEST_KEYS - manifest.keys()):
        raise ShardError(f"{path} lacks {', '.join(missing)}; copy the build again or rebuild it")
    return manifest


class Build:
    """A build opened for reading: the manifest, and the shards' tokens as memory maps.

    Opening reads no token: it checks format, version, dtype and that every file is there with the size the manifest
    gives it. Raises ShardError, or MisuseError when there is no such build.
    """

    def __init__(self, where: str | Path) -> None:
        self.folder = where if isinstance(where, Path) else find_build(where)
        self.manifest = read_manifest(self.folder)
        try:
            self._check()
        except (KeyError, TypeError, AttributeError) as e:
            raise ShardError(f"{self.folder / MANIFEST} is malformed ({type(e).__name__}: {e}); copy the build again or rebuild it") from e

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
            raise ShardError(f"{self.folder / MANIFEST} has dtype {m['dtype']!r}, wanted one of {', '.join(TOKEN_DTYPES)}; rebuild it")
        for split in SPLITS:
            for entry in m["splits"][split]["shards"]:
                if not re.fullmatch(rf"{split}-\d{{5}}\.bin", entry["file"]):
                    raise ShardError(
                        f"{self.folder / MANIFEST} names the file {entry['file']!r}, not {split}-NNNNN.bin; do not use this build"
                    )
                if entry["max_id"] >= m["vocab_size"]:
                    raise ShardError(
                        f"{entry['file']} holds id {entry['max_id']}, its vocabulary ends at {m['vocab_size'] - 1}; rebuild it"
                    )
                for name, size in self._sizes(entry).items():
                    self._check_file(name, size)
        self._check_file(STATS, None)

    def _sizes(self, entry: dict[str, Any]) -> dict[str, int]:
        stem = entry["file"].removesuffix(".bin")
        return {
            entry["file"]: entry["tokens"] * self.dtype.itemsize,
            f"{stem}.ends": entry["documents"] * END_DTYPE.itemsize,
            f"{stem}.docs": entry["documents"] * DOC_DTYPE.itemsize,
        }

    def _check_file(self, name: str, size_bytes: int | None) -> None:
        path = self.folder / name
        if not path.is_file():
            raise ShardError(f"{path} is missing; copy the build again or rebuild it")
        if size_bytes is not None and path.stat().st_size != size_bytes:
            raise ShardError(
                f"{path} has {path.stat().st_size:,} bytes, its manifest says {size_bytes:,}; copy the build again or rebuild it"
            )

    def shards(self, split: str) -> list[Shard]:
        """The shards of `split`, in order, mapped read-only. An empty file maps to an empty array."""
        return [self._map(entry) for entry in self.manifest["splits"][split]["shards"]]

    def _map(self, entry: dict[str, Any]) -> Shard:
        path = self.folder / entry["file"]
        return Shard(path, _map_array(path, self.dtype), _map_array(path.with_suffix(".ends"), END_DTYPE))

    def docs(self, split: str) -> np.ndarray:
        """The document table of `split`: (D,) of DOC_DTYPE, mapped where there is one shard."""
        tables = [_map_array((self.folder / e["file"]).with_suffix(".docs"), DOC_DTYPE) for e in self.manifest["splits"][split]["shards"]]
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


def _map_array(path: Path, dtype: np.dtype) -> np.ndarray:
    # np.memmap refuses an empty file; a split without documents is legitimate.
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def verify(build: Build) -> Iterator[str]:
    """Re-hash everything and yield one line for each thing that is wrong; nothing yielded means the build is whole."""
    m, folder = build.manifest, build.folder
    if (folder / MANIFEST).read_bytes() != readable_json(m):
        yield f"{MANIFEST} is not spelled as a builder spells it: it was edited"
    if m["checksum"] != sha256_bytes(canonical_json({k: v for k, v in m.items() if k != "checksum"})):
        yield f"{MANIFEST} does not match its own checksum"
    if m["build_id"] != build_id_of(m):
        yield f"{MANIFEST} does not match its own build_id"
    if m["dtype"] != token_dtype(m["vocab_size"]):
        yield f"dtype {m['dtype']} does not go with a vocabulary of {m['vocab_size']}"
    yield from _verify_hash(folder / STATS, m["stats_sha256"])
    for name, expected in sorted(m["tokenizer"]["files"].items()):
        if Path(name).name != name:
            yield f"{MANIFEST} names the tokenizer file {name!r}, which is not a plain file name"
        else:
            yield from _verify_hash(folder / TOKENIZER_DIR / name, expected)
    for split in SPLITS:
        entries = m["splits"][split]["shards"]
        for key in ("tokens", "documents"):
            if m["splits"][split][key] != sum(e[key] for e in entries):
                yield f"{split}: {key} is not the sum over its shards"
        for entry in entries:
            yield from _verify_shard(build, entry)


def _verify_hash(path: Path, expected: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
    elif (got := sha256_file(path)) != expected:
        yield f"{path.name} has sha256 {got}, its manifest says {expected}"


def _verify_shard(build: Build, entry: dict[str, Any]) -> Iterator[str]:
    path = build.folder / entry["file"]
    for suffix, key in ((".bin", "sha256"), (".ends", "ends_sha256"), (".docs", "docs_sha256")):
        yield from _verify_hash(path.with_suffix(suffix), entry[key])
    shard = build._map(entry)
    if entry["bytes"] != entry["tokens"] * build.dtype.itemsize:
        yield f"{path.name}: bytes is not tokens × {build.dtype.itemsize}"
    if len(shard.ends) and (int(shard.ends[-1]) != len(shard.tokens) or bool(np.any(np.diff(shard.ends.astype(np.int64)) < 0))):
        yield f"{path.stem}.ends does not rise to {len(shard.tokens)}"
    max_id = max((int(shard.tokens[i : i + HASH_CHUNK_BYTES].max()) for i in range(0, len(shard.tokens), HASH_CHUNK_BYTES)), default=-1)
    if max_id != entry["max_id"]:
        yield f"{path.name} holds ids up to {max_id}, its manifest says {entry['max_id']}"
