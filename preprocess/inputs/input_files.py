"""The files that a build reads: their formats, their checksums, and the metadata in their names.

Sizes, times and checksums are recorded when a build is planned. Readers check sizes and times
again, so a file that changes in the meantime raises an error instead of being read as a mixture of
two versions.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import TABLE_FORMATS, Recipe, reject_settings_of_other_formats
from preprocess.recipes.templates import parse_name_pattern
from preprocess.shards.files import HASH_CHUNK_BYTES

SUFFIXES = {
    ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
UNSUPPORTED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip", ".7z", ".rar", ".bz2", ".xz", ".lz4", ".lzma")
NO_SHA256 = "none"  # InputFile.sha256 of a file that was not hashed
# What `name_pattern` finds in a file name: author, city, lang, group, split, and the year as an int.
NameMetadata = dict[str, str | int]
# Large enough that the fixed cost of a task is negligible, small enough that all workers finish at
# about the same time: 400 MB make 25 tasks.
PARTITION_BYTES = 16 << 20
# Opening and reading a small file takes about 0.1 ms, so a task on this many takes as long as one on
# PARTITION_BYTES of text.
PARTITION_FILES = 2_048
MAX_FILES_PER_HASH_TASK = 256


class InputChanged(FolioError):
    """An input file changed after the build was planned. `reason` describes the change."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)  # not the message: a worker sends the arguments, from which the error is made again
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}; wait until the file no longer changes, then run the same command again"


@dataclass(frozen=True, slots=True)  # slots: there may be a million
class InputFile:
    """A file that a build reads, as it was when the build was planned."""

    number: int  # its index in the manifest's `sources`
    name: str  # relative path with `/`, as in the manifest and for `name_pattern`
    path: str
    format: str  # text, jsonl, csv, parquet or synthetic
    compression: str  # gzip, zstd or ""
    size_bytes: int
    mtime_ns: int
    sha256: str
    metadata: NameMetadata
    ctime_ns: int = 0  # of the last change of content or attributes; the time of creation on Windows

    def check_unchanged(self) -> None:
        """Raise InputChanged if the file has changed, FolioError if it was removed.

        A file that is changed can keep its size and its modification time. Therefore a file that
        was hashed is hashed again if its ctime differs. The ctime alone is not enough: new
        permissions or another hard link also change it.
        """
        try:
            stat = os.stat(self.path)
        except FileNotFoundError as e:
            raise FolioError(
                f"{self.path} was removed while it was read; restore it and run the same command again"
            ) from e
        if stat.st_size != self.size_bytes:
            raise InputChanged(
                f"{self.path} changed while it was read ({self.size_bytes:,} bytes, now {stat.st_size:,})"
            )
        if stat.st_mtime_ns != self.mtime_ns:
            raise InputChanged(f"{self.path} changed while it was read (it has a new modification time)")
        may_differ = stat.st_ctime_ns != self.ctime_ns and self.sha256 != NO_SHA256
        if may_differ and _hash_version(self.path, stat.st_ctime_ns) != self.sha256:
            raise InputChanged(f"{self.path} changed while it was read (it has another sha256)")

    def manifest_entry(self) -> dict[str, str | int]:
        """Return the file's entry in the manifest's `sources`."""
        return {"name": self.name, "bytes": self.size_bytes, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Span:
    """A range of one input file: bytes of text and JSON lines, row groups of Parquet."""

    file_number: int  # InputFile.number
    start: int = 0
    stop: int | None = None  # exclusive; by default the end of the file
    size_bytes: int = 0  # approximate; for progress bars and estimates
    # With the split "contiguous", for a part of a divided text: the offset of the split in the cleaned text from
    # `start`, in characters. It may be outside of the span.
    boundary: int | None = None


def detect_format(name: str) -> tuple[str | None, str]:
    """Return the format and the compression of a file, as the suffixes of its name indicate.

    The format is None if the suffix is unknown. The compression is "" if there is none.
    """
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix, "")
    return SUFFIXES.get(os.path.splitext(stem)[1] if compression else suffix), compression


def describe_input_files(
    paths: list[tuple[str, str]], recipe: Recipe, known_sha256: dict[str, str], *, num_threads: int
) -> list[InputFile]:
    """Return an InputFile for each (name, path) in `paths`, in the same order.

    `known_sha256` maps names to checksums that need not be computed. Other files are read and
    hashed in `num_threads` threads. Raises MisuseError if the format of a file is unknown or not
    supported, or if its name does not match `recipe.name_pattern`.
    """
    metadata = _parse_names([name for name, _ in paths], recipe)
    formats = [_check_format(name, path, recipe) for name, path in paths]
    stats = [os.stat(path) for _, path in paths]  # before hashing, so that a change during hashing is detected
    hashes = _hash_files(paths, known_sha256, num_threads)
    return [
        InputFile(
            number,
            name,
            path,
            *formats[number],
            stat.st_size,
            stat.st_mtime_ns,
            sha256,
            metadata[number],
            stat.st_ctime_ns,
        )
        for number, ((name, path), stat, sha256) in enumerate(zip(paths, stats, hashes, strict=True))
    ]


def _hash_files(paths: list[tuple[str, str]], known_sha256: dict[str, str], num_threads: int) -> list[str]:
    """Return the SHA-256 of each file. Threads hash in parallel, because hashlib releases the GIL.

    A task is several files, because starting a task takes longer than hashing a small file.
    """
    size = min(max(len(paths) // (num_threads * 16), 1), MAX_FILES_PER_HASH_TASK)
    is_cancelled = threading.Event()

    def hash_some(start: int) -> list[str]:
        return [known_sha256.get(name) or _hash_file(path, is_cancelled) for name, path in paths[start : start + size]]

    with ThreadPoolExecutor(num_threads) as pool:
        try:
            return list(itertools.chain.from_iterable(pool.map(hash_some, range(0, len(paths), size))))
        except BaseException:  # an interruption must not wait until the other threads have hashed their files
            is_cancelled.set()
            raise


def _hash_file(path: str, is_cancelled: threading.Event) -> str:
    """Return the SHA-256 of a file, or of a part of it if the work is cancelled."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while not is_cancelled.is_set() and (chunk := file.read(HASH_CHUNK_BYTES)):
            digest.update(chunk)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _hash_version(path: str, ctime_ns: int) -> str:
    """Return the SHA-256 of a file. `ctime_ns` is part of the cache's key: a changed file is hashed again."""
    return _hash_file(path, threading.Event())


def _check_format(name: str, path: str, recipe: Recipe) -> tuple[str, str]:
    """Return the format and the compression with which a file is read."""
    detected, compression = detect_format(name)
    format_ = detected if recipe.format == "auto" else recipe.format
    if name.lower().endswith(UNSUPPORTED_SUFFIXES):
        raise MisuseError(
            f"{path} is an archive or has an unsupported compression; unpack it (gzip and zstd are read directly)"
        )
    if format_ is None:
        raise MisuseError(
            f"the format of {path} is not clear from its name; pass --format with one of text, "
            f"{', '.join(TABLE_FORMATS)}"
        )
    if compression and format_ == "parquet":
        raise MisuseError(f"{path} is a compressed Parquet file; decompress it, Parquet has its own compression")
    if (compression or format_ == "parquet") and not _is_utf8(path):
        raise MisuseError(f"the path {path} is not UTF-8, so Arrow cannot open the file; rename its folder")
    return format_, compression


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # Python represents other bytes by surrogates
        return False
    return True


def _parse_names(names: list[str], recipe: Recipe) -> list[NameMetadata]:
    """Return the metadata that `recipe.name_pattern` finds in each of `names`."""
    if recipe.name_pattern is None:
        return [{}] * len(names)
    metadata: list[NameMetadata] = []
    for name, groups in zip(names, parse_name_pattern(recipe.name_pattern).extract(names), strict=True):
        if not groups:
            raise MisuseError(
                f"name_pattern {recipe.name_pattern!r} does not match {name!r}; widen the pattern, or leave the file "
                "out"
            )
        fields: NameMetadata = {field: value for field, value in groups.items() if value}
        if year := groups.get("year"):
            if not (year.isascii() and year.isdecimal() and len(year) <= 4):
                raise MisuseError(f"name_pattern must find a year of up to four digits, found {year!r} in {name!r}")
            fields["year"] = int(year)
        metadata.append(fields)
    return metadata


def resolve_format(recipe: Recipe, files: list[InputFile]) -> Recipe:
    """Return `recipe` with `format` "auto" replaced by the format of `files`, if all have the same.

    If the format is known, the manifest leaves out the settings of other formats, so they cannot
    make two equal builds look different. Raises MisuseError for settings that do not apply to the
    formats of `files`.
    """
    formats = {file.format for file in files}
    if recipe.split == "contiguous" and formats - {"text"}:
        raise MisuseError(
            f"split 'contiguous' cuts text files, but {files[0].path} is {files[0].format}; set split to 'exact'"
        )
    if recipe.format == "auto" and len(formats) == 1:
        recipe = dataclasses.replace(recipe, format=formats.pop())
        reject_settings_of_other_formats(recipe)
    elif "text" in formats and (recipe.where or recipe.template):
        path = next(file.path for file in files if file.format == "text")
        raise MisuseError(
            f"where and template apply to tables, but {path} is text; leave them out, or build the text files "
            "separately"
        )
    return recipe
