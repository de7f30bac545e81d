"""What a build reads: the files found, told apart by format, vouched for by their sha256, and cut into partitions.

Partitions are a matter of speed only: no byte of a build depends on where they begin.
"""

from __future__ import annotations

import glob
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
ARCHIVES = (".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip", ".7z", ".rar", ".bz2", ".xz", ".lz4", ".lzma")
# Enough that a task's overhead vanishes, few enough that two workers end together: 400 MB are 25 tasks.
PARTITION_BYTES = 16 << 20


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
        """Raise FolioError where the file is not the one that was planned with."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError as e:
            raise FolioError(f"{self.path} went away while it was read; put it back and run the same command again") from e
        if (now.st_size, now.st_mtime_ns) != (self.size_bytes, self.mtime_ns):
            raise FolioError(f"{self.path} changed while it was read; let it rest and run the same command again")

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


@dataclass(frozen=True)
class Partition:
    """What one task reads."""

    number: int
    pieces: tuple[Piece, ...]


def find_inputs(inputs: Iterable[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Name and path of every file that `inputs` (files, folders, globs) stand for, by name, each once; and what folders held besides.

    The name is relative to the folder that all of them share. Raises MisuseError where one stands for nothing.
    """
    paths: set[Path] = set()
    left_out: list[str] = []
    for entry in inputs:
        found, passed_over = _expand(entry)
        if not found:
            why = f"; {len(passed_over):,} files are there whose names tell no format: pass a glob and --format" if passed_over else ""
            wanted = "name a file, a folder, or a glob in quotes such as 'data/*.jsonl.zst'"
            raise MisuseError(f"--input {entry or repr(entry)} matches no file{why}; {wanted}")
        paths.update(path.resolve() for path in found)
        left_out += passed_over
    base = os.path.commonpath([path.parent for path in paths])
    named = sorted((path.relative_to(base).as_posix(), path) for path in paths)
    for name, path in named:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as e:
            raise MisuseError(f"the name of {path} is not UTF-8, which no manifest can hold; rename the file") from e
    return named, left_out


def input_bytes(recipe: Recipe) -> int:
    """About how many bytes there are to read."""
    return (
        sum(path.stat().st_size for _, path in find_inputs(recipe.inputs)[0]) if recipe.inputs else sum(file.bytes for file in recipe.files)
    )


def _expand(entry: str) -> tuple[list[Path], list[str]]:
    """The files that `entry` stands for; and, of a folder, the names of those whose format their names do not tell."""
    path = Path(entry)
    if not entry:
        return [], []
    if path.is_dir():
        return _walk(path)
    if path.exists():
        if not path.is_file():
            raise MisuseError(f"--input {entry} is no regular file; name a file, a folder or a glob")
        return [path], []
    return [p for p in map(Path, glob.glob(entry, recursive=True)) if p.is_file()], []


def _walk(folder: Path) -> tuple[list[Path], list[str]]:
    """The files below `folder`, but for hidden ones and those of builds, which were made of others."""
    found: list[Path] = []
    left_out: list[str] = []
    for here, folders, names in os.walk(folder):
        if MANIFEST in names and TOKENIZER_DIR in folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(here) / name for name in names if not name.startswith(".")):
            if path.is_file() and _format_by_name(path.name)[0]:
                found.append(path)
            elif path.is_file():
                left_out.append(path.name)
    return found, left_out


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


def cut(sources: list[Source], recipe: Recipe) -> list[Partition]:
    """The partitions of `sources`, in reading order; each source's pieces are in order, and small sources share a partition."""
    partitions: list[Partition] = []
    pieces: list[Piece] = []
    held = 0
    for source in sources:
        for piece in _pieces(source, recipe):
            if pieces and held + piece.size_bytes > PARTITION_BYTES:
                partitions.append(Partition(len(partitions), tuple(pieces)))
                pieces, held = [], 0
            pieces.append(piece)
            held += piece.size_bytes
    if pieces:
        partitions.append(Partition(len(partitions), tuple(pieces)))
    return partitions


def _pieces(source: Source, recipe: Recipe) -> Iterator[Piece]:
    if source.format == "parquet":
        from preprocess.readers.parquet import row_group_bytes

        start = held = 0
        for group, size in enumerate(sizes := row_group_bytes(source, recipe)):
            held += size
            if held >= PARTITION_BYTES or group == len(sizes) - 1:
                yield Piece(source.number, start, group + 1, held)
                start, held = group + 1, 0
    elif _can_be_cut(source, recipe):
        from preprocess.readers.runs import borders_of, next_border

        start, borders = 0, borders_of(source, recipe)
        while start < source.size_bytes:
            stop = next_border(source, borders, start + PARTITION_BYTES)
            yield Piece(source.number, start, stop, stop - start)
            start = stop
    else:
        yield Piece(source.number, size_bytes=source.size_bytes)


def _can_be_cut(source: Source, recipe: Recipe) -> bool:
    """Whether a reader that starts anywhere in the file finds the same documents as one that starts at its head."""
    if source.compression or recipe.group_by == "position" or source.size_bytes <= PARTITION_BYTES:
        return False
    if source.format == "jsonl":
        return True
    separator = recipe.separator
    overlaps = any(
        separator.endswith(separator[:n]) for n in range(1, len(separator))
    )  # such as "==": found at other places from elsewhere
    return (
        source.format == "text"
        and recipe.split != "contiguous"
        and (recipe.document in ("line", "paragraph") or (recipe.document == "separator" and not overlaps))
    )
