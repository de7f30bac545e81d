"""The shards on disk, version 1: file names, dtypes, and `Build`, which opens a build for reading.

docs/shard_format.md describes the layout, and only this folder implements it: writer.py writes
shards, verify.py checks them, manifest.py has the keys of manifest.json. This module needs only
NumPy and the standard library, so a machine that only trains needs neither Arrow nor a tokenizer.

A shard is three files without headers: `.bin` has the token ids, `.ends` the exclusive end of each
document in tokens, `.docs` one record per document. A build with chats also has `.mask`, the loss
mask (loss_mask.py). All files are memory-mapped, so opening a build takes the same time and memory
for a megabyte as for a terabyte.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import JsonObject, find_blocking_file, read_small_file
from preprocess.shards.loss_mask import count_mask_bytes, unpack_mask
from preprocess.shards.manifest import SPLITS, ShardEntry, hash_manifest
from preprocess.shards.manifest_file import MANIFEST, MAX_FILE_BYTES, ShardError, read_manifest, read_verified
from preprocess.shards.replaced import ReplacedError, read_manifest_version, read_unreplaced, wait_for_manifest
from preprocess.shards.runs import is_run

STATS = "stats.json"
BUILD_LOG = "build_log.json"
TOKENIZER_DIR = "tokenizer"
CONTROL_FIELDS = ("author", "city", "year")  # in the order of their tokens before a document's text
BUILD_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
END_DTYPE = np.dtype("<u8")
DOC_DTYPE = np.dtype([("hash", "u1", 16), ("source", "<u4"), ("lang", "<u4"), ("position", "<u8")])
MAX_UINT16_VOCAB = 1 << 16


def token_dtype(vocab_size: int) -> str:
    """Return the dtype of token ids: "<u2" if `vocab_size` is at most 65,536, otherwise "<u4"."""
    return "<u2" if vocab_size <= MAX_UINT16_VOCAB else "<u4"


def file_sizes(num_tokens: int, num_documents: int, dtype: np.dtype, *, has_mask: bool = False) -> dict[str, int]:
    """Return the sizes in bytes of a shard's files, by suffix. `dtype`: of its tokens."""
    sizes = {
        "bin": num_tokens * dtype.itemsize,
        "ends": num_documents * END_DTYPE.itemsize,
        "docs": num_documents * DOC_DTYPE.itemsize,
    }
    return sizes | {"mask": count_mask_bytes(num_tokens)} if has_mask else sizes


def format_control_token(field: str, value: str | int) -> str:
    """Return the text of a control token, such as `<author_Anna_Akimova>` or `<year_1623>`.

    Each white space character becomes `_`. An int is written with at least four digits.
    """
    name = f"{value:04d}" if isinstance(value, int) else "".join("_" if c.isspace() else c for c in value)
    return f"<{field}_{name}>"


def seal(fields: JsonObject) -> JsonObject:
    """Return the object that manifest.json contains: `fields` with `build_id` and `checksum`."""
    manifest = {k: v for k, v in fields.items() if k != "checksum"}
    manifest["build_id"], _ = hash_manifest(manifest)
    _, manifest["checksum"] = hash_manifest(manifest)
    return manifest


def default_root() -> Path:
    """Return the folder in which builds are looked up by name: `$FOLIO_SHARDS`, or `./shards`."""
    return Path(os.environ.get("FOLIO_SHARDS") or "shards")


def check_name(name: str) -> str:
    """Return `name` if it is a valid name of a build. Raises MisuseError if it is not."""
    if not BUILD_NAME.fullmatch(name):
        raise MisuseError(
            f"a build cannot be named {name!r}: expected up to 64 of a-z 0-9 . _ -, beginning with a letter or digit; "
            "choose another name"
        )
    return name


class MissingBuildError(MisuseError):
    """No build has the given name, or is in the given folder."""


def find_build(name_or_folder: str) -> Path:
    """Return the folder of a build. A value with a path separator is a folder, any other is a name.

    A name is looked up in `default_root()`, then in `./shards`. Raises MisuseError if the name is
    not valid or names a run, and MissingBuildError, which lists the folders, if none of them has a manifest.
    """
    if "/" in name_or_folder or os.sep in name_or_folder:
        candidates = [Path(name_or_folder)]
    else:
        check_name(name_or_folder)
        candidates = list(dict.fromkeys([default_root() / name_or_folder, Path("shards") / name_or_folder]))
    for folder in candidates:
        if wait_for_manifest(folder):
            return folder
    if is_run(candidates[0]):
        raise MisuseError(
            f"{candidates[0]} is a run, not a build; choose a build that `preprocess list` shows, or use `folio report`"
        )
    tried = " and ".join(map(str, candidates))
    here = Path(name_or_folder)
    if here not in candidates and (here / MANIFEST).is_file():
        raise MissingBuildError(
            f"no build {name_or_folder!r}: no {MANIFEST} in {tried}; for the folder here, pass ./{here}"
        )
    raise MissingBuildError(
        f"no build {name_or_folder!r}: no {MANIFEST} in {tried}; "
        "`preprocess list` lists the existing builds, `preprocess build --help` explains how to make one"
    )


def list_builds(root: Path) -> list[Path]:
    """Return the folders in `root` that have a valid name and a manifest, sorted by name."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if BUILD_NAME.fullmatch(p.name) and (p / MANIFEST).is_file())


def check_no_build(output: Path, why: str) -> None:
    """Raise MisuseError if `output` is a build or a file, or is in a file. A build must not contain other files.

    `why`: a relative clause for the message, such as "which must not contain other files".
    """
    if (output / MANIFEST).exists():
        raise MisuseError(f"{output} is a build, {why}; choose another --output")
    if (blocking := find_blocking_file(output)) is not None:
        raise MisuseError(f"{blocking} is a file; name a folder")


@dataclass(frozen=True)
class Shard:
    """The memory-mapped arrays of one shard."""

    path: Path
    tokens: np.ndarray  # (N,) of the build's dtype, read-only
    ends: np.ndarray  # (D,) uint64, exclusive end of each document in `tokens`, read-only
    mask: np.ndarray | None = None  # (B,) uint8, the loss mask, a bit for each token (loss_mask.py)


class Build:
    """A build opened for reading.

    Opening reads the manifest but no token data. It checks that every file exists and has the size
    that follows from the manifest; `preprocess verify` checks the contents.
    """

    is_streamed = False  # whether tokens are in the files only after `wait_for_tokens`

    def __init__(self, name_or_folder: str | Path) -> None:
        """Open the build in a folder (a Path), or the build that `find_build` finds (a str).

        Raises MisuseError if it does not exist, ShardError if it is incomplete or damaged.
        """
        self.folder = name_or_folder if isinstance(name_or_folder, Path) else find_build(name_or_folder)
        read_unreplaced(self.folder, self._open)

    def _open(self) -> None:
        self._version = read_manifest_version(self.folder)
        self.manifest = read_manifest(self.folder)
        self._check()

    def check_unreplaced(self) -> None:
        """Raise ReplacedError if another build replaced this one, or it was deleted, after opening.

        Call this after mapping or reading files: if it does not raise, they belong to this build.
        """
        if read_manifest_version(self.folder) == self._version:
            return
        # The same build may have been made again, or only the times of the file have changed.
        if not wait_for_manifest(self.folder) or read_manifest(self.folder).build_id != self.build_id:
            raise self._make_replaced_error()

    def _make_replaced_error(self) -> ReplacedError:
        return ReplacedError(f"{self.folder} was replaced or deleted while it was read; run the command again")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise ReplacedError at the end of the block if the build was replaced since it was opened.

        It is also raised in place of an exception in the block, because a mixture of two builds
        looks like a damaged one. A block that writes files is inside the one that names them.
        """
        self.check_unreplaced()
        version = read_manifest_version(self.folder)
        try:
            yield
        except Exception:
            self.check_unreplaced()
            raise
        # Even if the first build is back: another one may have been read.
        if read_manifest_version(self.folder) != version:
            raise self._make_replaced_error()

    def read_vocabulary(self) -> dict[str, bytes]:
        """Return the files that decoding needs, by relative path: the manifest and the tokenizer's.

        Raises ShardError if a file of the tokenizer differs from its hash in the manifest, and
        ReplacedError if the build was replaced since it was opened.
        """
        files = {f"{TOKENIZER_DIR}/{file}": sha256 for file, sha256 in self.manifest.tokenizer.files.items()}
        contents = {name: read_verified(self.folder / name, sha256) for name, sha256 in files.items()}
        contents[MANIFEST] = read_small_file(self.folder / MANIFEST, MAX_FILE_BYTES)
        self.check_unreplaced()
        return contents

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def build_id(self) -> str:
        return self.manifest.build_id

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @property
    def has_masks(self) -> bool:
        """Whether the shards have loss masks."""
        return any(shard.mask_sha256 for split in self.manifest.splits.values() for shard in split.shards)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.manifest.dtype)

    def _check(self) -> None:
        if self.manifest.dtype != (expected := token_dtype(self.vocab_size)):
            raise ShardError(
                f"{self.folder / MANIFEST} has dtype {self.manifest.dtype!r:.80}, expected {expected!r} for a "
                f"vocabulary of {self.vocab_size:,}; rebuild it"
            )
        for split in SPLITS:
            for entry in self.manifest.splits[split].shards:
                self._check_shard(entry)
        for name in (STATS, *(f"{TOKENIZER_DIR}/{file}" for file in self.manifest.tokenizer.files)):
            self._check_file(self.folder / name, None)

    def _check_shard(self, entry: ShardEntry) -> None:
        if entry.max_id >= self.vocab_size:
            raise ShardError(
                f"{entry.file} holds id {entry.max_id}, but its vocabulary ends at {self.vocab_size - 1}; rebuild it"
            )
        path = self.folder / entry.file
        sizes = file_sizes(entry.tokens, entry.documents, self.dtype, has_mask=entry.mask_sha256 is not None)
        for suffix, size_bytes in sizes.items():
            self._check_file(path.with_suffix(f".{suffix}"), size_bytes)
        if entry.bytes != entry.tokens * self.dtype.itemsize:
            raise ShardError(
                f"{entry.file} has {entry.bytes:,} bytes in its manifest, expected {self.dtype.itemsize} for each of "
                f"{entry.tokens:,} tokens; rebuild it"
            )

    def _check_file(self, path: Path, size_bytes: int | None) -> None:
        if not path.is_file():
            raise ShardError(f"{path} is missing; copy the build again or rebuild it")
        if size_bytes is not None and path.stat().st_size != size_bytes:
            raise ShardError(
                f"{path} has {path.stat().st_size:,} bytes, its manifest says {size_bytes:,}; "
                "copy the build again or rebuild it"
            )

    def shards(self, split: str) -> list[Shard]:
        """Return the shards of `split`, in order, memory-mapped and read-only."""
        return [self.map_shard(entry) for entry in self.manifest.splits[split].shards]

    def map_shard(self, entry: ShardEntry) -> Shard:
        """Return the memory-mapped arrays of one shard."""
        path = self.folder / entry.file
        mask = None if entry.mask_sha256 is None else map_array(path.with_suffix(".mask"), np.dtype(np.uint8))
        return Shard(path, map_array(path, self.dtype), map_array(path.with_suffix(".ends"), END_DTYPE), mask)

    def wait_for_tokens(self, split: str, shard: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        """Wait until the tokens `begin` to `end` − 1 of shards, (B,) int64 each, are in their files."""

    def check_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return `ids`, of any shape. Raises FolioError if one of them is outside the vocabulary."""
        if ids.max(initial=0) >= self.vocab_size:
            raise FolioError(
                f"{self.folder} holds id {ids.max()}, but its vocabulary ends at {self.vocab_size - 1}; "
                "check it with `preprocess verify`"
            )
        return ids

    def iter_tokens(self, split: str, max_tokens: int) -> Iterator[np.ndarray]:
        """Yield the tokens of `split` in order, at most `max_tokens` at a time: (N,) of the build's dtype.

        One shard is mapped at a time, because the pages of a mapped file that were read count as memory
        of this process.
        """
        for entry in self.manifest.splits[split].shards:
            tokens = self.map_shard(entry).tokens
            for start in range(0, len(tokens), max_tokens):
                yield tokens[start : start + max_tokens]

    def docs(self, split: str) -> np.ndarray:
        """Return the document records of `split`, (D,) of DOC_DTYPE.

        They are memory-mapped if the split has one shard, otherwise copied: 32 bytes per document.
        """
        tables = [
            map_array((self.folder / entry.file).with_suffix(".docs"), DOC_DTYPE)
            for entry in self.manifest.splits[split].shards
        ]
        if len(tables) == 1:
            return tables[0]
        return np.concatenate(tables) if tables else np.empty(0, DOC_DTYPE)  # a split may have no shards

    def iter_docs(self, entry: ShardEntry, max_documents: int) -> Iterator[np.ndarray]:
        """Yield the document records of a shard, at most `max_documents` at a time: (D,) of DOC_DTYPE.

        They are read and not mapped: the pages of a mapped file would count as memory of this process.
        """
        path = (self.folder / entry.file).with_suffix(".docs")
        for first in range(0, entry.documents, max_documents):
            count = min(max_documents, entry.documents - first)
            yield np.fromfile(path, DOC_DTYPE, count, offset=first * DOC_DTYPE.itemsize)

    def document(self, split: str, number: int) -> np.ndarray:
        """Return the ids of document `number` of `split`, (L,) of the build's dtype.

        Documents are counted from 0. Raises MisuseError if the number is out of range.
        """
        shard, begin, end = self._find_document(split, number)
        return shard.tokens[begin:end]

    def document_record(self, split: str, number: int) -> np.ndarray:
        """Return the record of document `number` of `split`: () of DOC_DTYPE.

        Raises MisuseError if the number is out of range.
        """
        entry, index = self._find_entry(split, number)
        path = (self.folder / entry.file).with_suffix(".docs")
        record: np.ndarray = np.fromfile(path, DOC_DTYPE, 1, offset=index * DOC_DTYPE.itemsize)[0]
        return record

    def document_mask(self, split: str, number: int) -> np.ndarray:
        """Return the loss mask of document `number` of `split`, (L,) bool; all True if the build has no masks.

        Raises MisuseError if the number is out of range.
        """
        shard, begin, end = self._find_document(split, number)
        return np.ones(end - begin, bool) if shard.mask is None else unpack_mask(shard.mask, begin, end)

    def _find_document(self, split: str, number: int) -> tuple[Shard, int, int]:
        """Return the shard of a document, and the index of its first token and of the one after its last.

        Only this shard is mapped: a build may have more shards than a process may open files.
        """
        entry, index = self._find_entry(split, number)
        shard = self.map_shard(entry)
        return shard, int(shard.ends[index - 1]) if index else 0, int(shard.ends[index])

    def _find_entry(self, split: str, number: int) -> tuple[ShardEntry, int]:
        """Return the entry of the shard of a document, and the number of the document in the shard."""
        index = number  # in the current shard
        for entry in self.manifest.splits[split].shards if number >= 0 else ():
            if index < entry.documents:
                return entry, index
            index -= entry.documents
        num_documents = self.manifest.splits[split].documents
        raise MisuseError(
            f"no document {number} in the {split} split of {self.name}: it has {num_documents:,}, counted from 0"
        )


def map_array(path: Path, dtype: np.dtype) -> np.ndarray:
    """Return a file as a read-only memory-mapped array.

    Returns an empty array for an empty file, which cannot be mapped. Raises ShardError if the
    process has reached its limit of open files, and OSError if the file cannot be opened.
    """
    try:
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
    except OSError as e:
        if e.errno != errno.EMFILE:
            raise
        # A map keeps its file open, and each shard has two maps. With the default size of shards,
        # 50 billion tokens reach the usual limit of 1,024 files.
        raise ShardError(
            f"{path} exceeds the number of files that this process can open; raise the limit, e.g. `ulimit -n 65536`"
        ) from e
