"""What a build reads: the files found, told apart by format, and vouched for by their sha256."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.recipe import TABLES, Recipe
from preprocess.shards.files import sha256_file
from preprocess.shards.format import MANIFEST, TOKENIZER_DIR

SUFFIXES = {
    ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
OPTION = "--input"  # what asks for `inputs` on the command line
ARCHIVES = (".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip", ".7z", ".rar", ".bz2", ".xz", ".lz4", ".lzma")
# Enough that a task's overhead vanishes, few enough that two workers end together: 400 MB are 25 tasks.
PARTITION_BYTES = 16 << 20


class SourceChanged(FolioError):
    """A file is not the one that was planned with: `what` says how."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; let it rest and run the same command again")
        self.what = what


@dataclass(frozen=True)
class Source:
    """One input, as it was when the build was planned."""

    number: int  # in the manifest's `sources`
    name: str  # relative, POSIX: what the manifest and the name pattern see
    path: str
    format: str
    compression: str  # gzip, zstd or ""
    size_bytes: int
    mtime_ns: int
    sha256: str
    metadata: dict[str, Any]  # what the file's name says: author, city, year, lang, group, split

    def require_unchanged(self) -> None:
        """Raise SourceChanged where the file is not the one that was planned with, FolioError where it is gone."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError as e:
            raise FolioError(f"{self.path} went away while it was read; put it back and run the same command again") from e
        if (now.st_size, now.st_mtime_ns) != (self.size_bytes, self.mtime_ns):
            sizes = f"{self.size_bytes:,} bytes, now {now.st_size:,}" if now.st_size != self.size_bytes else "it was written anew"
            raise SourceChanged(f"{self.path} changed while it was read ({sizes})")

    def entry(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {"name": self.name, "bytes": self.size_bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class Piece:
    """A part of one source: bytes of text and JSONL, row groups of Parquet; `stop` None: to the end."""

    source: int
    start: int = 0
    stop: int | None = None
    size_bytes: int = 0  # about, for the bar and for estimates


def find_inputs(inputs: Iterable[str], asked_by: str = OPTION) -> tuple[list[tuple[str, Path]], list[str]]:
    """Name and path of every file that `inputs` (files, folders, globs) stand for, by name, each once; and what folders held besides.

    The name is relative to the folder that all of them share. `asked_by`: where a message says that they are named.
    Raises MisuseError where one stands for nothing.
    """
    paths: set[Path] = set()
    left_out: list[str] = []
    for path, is_read in _expand(inputs, asked_by):
        if is_read:
            paths.add(path.resolve())
        else:
            left_out.append(path.name)
    base = os.path.commonpath([path.parent for path in paths])
    named = sorted((path.relative_to(base).as_posix(), path) for path in paths)
    for name, path in named:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as e:
            raise MisuseError(f"the name of {path} is not UTF-8, which no manifest can hold; rename the file") from e
    return named, left_out


def is_larger(recipe: Recipe, num_bytes: int) -> bool:
    """Whether there is more than `num_bytes` to read. Of many files, only as many are looked at as it takes to know."""
    found = (path.stat().st_size for path, is_read in _expand(recipe.inputs) if is_read)
    sizes = found if recipe.inputs else (file.bytes for file in recipe.files)
    return any(total > num_bytes for total in itertools.accumulate(sizes))


def _expand(inputs: Iterable[str], asked_by: str = OPTION) -> Iterator[tuple[Path, bool]]:
    """The files that `inputs` stand for, and whether each is to be read: not those in folders whose names tell no format.

    Raises MisuseError where one stands for nothing.
    """
    for entry in inputs:
        num_read = num_passed_over = 0
        for path, is_read in _expand_one(entry, asked_by):
            num_read += is_read
            num_passed_over += not is_read
            yield path, is_read
        if not num_read:
            why = f"; {num_passed_over:,} files are there whose names tell no format: pass a glob and --format" if num_passed_over else ""
            wanted = "name a file, a folder, or a glob in quotes such as 'data/*.jsonl.zst'"
            raise MisuseError(f"{asked_by} {entry or repr(entry)} matches no file{why}; {wanted}")


def _expand_one(entry: str, asked_by: str) -> Iterator[tuple[Path, bool]]:
    path = Path(entry)
    if not entry:
        return
    if path.is_dir():
        yield from _walk(path)
    elif path.exists():
        if not path.is_file():
            raise MisuseError(f"{asked_by} {entry} is no regular file; name a file, a folder or a glob")
        yield path, True
    else:
        yield from ((p, True) for p in map(Path, glob.iglob(entry, recursive=True)) if p.is_file())


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The files below `folder`, but for hidden ones and those of builds, which were made of others."""
    for here, folders, names in os.walk(folder):
        if MANIFEST in names and TOKENIZER_DIR in folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(here) / name for name in names if not name.startswith(".")):
            if path.is_file():
                yield path, _format_by_name(path.name)[0] is not None


def _format_by_name(name: str) -> tuple[str | None, str]:
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix, "")
    return SUFFIXES.get(os.path.splitext(stem)[1] if compression else suffix), compression


def describe_sources(named: list[tuple[str, Path]], recipe: Recipe, vouched: dict[str, str], *, num_threads: int) -> list[Source]:
    """A Source for each name and path. `vouched`: sha256 by name where it is known already; the others are hashed.

    Raises MisuseError for a file whose format its name does not tell, or whose name does not match `name_pattern`.
    """
    metadata = _metadata_of_names([name for name, _ in named], recipe)
    stats = [path.stat() for _, path in named]  # before they are hashed: what changes from here on is noticed
    with ThreadPoolExecutor(num_threads) as pool:  # hashlib lets other threads run
        hashes = list(pool.map(lambda item: vouched.get(item[0]) or sha256_file(item[1]), named))
    sources = []
    for number, ((name, path), sha256) in enumerate(zip(named, hashes, strict=True)):
        by_name, compression = _format_by_name(name)
        format_ = by_name if recipe.format == "auto" else recipe.format
        if name.lower().endswith(ARCHIVES):
            raise MisuseError(f"{path} is an archive or of a compression that is not read; unpack it (gzip and zstd are read as they are)")
        if format_ is None:
            raise MisuseError(f"the name of {path} does not tell its format; pass --format text, {', '.join(TABLES)}")
        if compression and format_ == "parquet":
            raise MisuseError(f"{path} is a compressed Parquet file, which compresses by itself; decompress it")
        stat = stats[number]
        sources.append(Source(number, name, str(path), format_, compression, stat.st_size, stat.st_mtime_ns, sha256, metadata[number]))
    return sources


def _metadata_of_names(names: list[str], recipe: Recipe) -> list[dict[str, Any]]:
    if recipe.name_pattern is None:
        return [{} for _ in names]
    from preprocess.templates import parse_name_pattern

    metadata: list[dict[str, Any]] = []
    for name, found in zip(names, parse_name_pattern(recipe.name_pattern).extract(names), strict=True):
        if not found:
            raise MisuseError(f"name_pattern {recipe.name_pattern!r} does not match {name!r}; widen the pattern, or leave the file out")
        fields: dict[str, Any] = {field: value for field, value in found.items() if value}
        if "year" in fields:
            if not (fields["year"].isascii() and fields["year"].isdecimal() and len(fields["year"]) <= 4):
                raise MisuseError(f"name_pattern finds the year {fields['year']!r} in {name!r}, wanted up to four digits")
            fields["year"] = int(fields["year"])
        metadata.append(fields)
    return metadata
