"""What a build reads: the files found, told apart by format, and vouched for by their sha256."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import TABLES, Recipe, reject_without_effect
from preprocess.shards.files import sha256_file

SUFFIXES = {
    ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ARCHIVES = (".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip", ".7z", ".rar", ".bz2", ".xz", ".lz4", ".lzma")
# Enough that a task's overhead vanishes, few enough that two workers end together: 400 MB are 25 tasks.
PARTITION_BYTES = 16 << 20


class InputChanged(FolioError):
    """A file is not the one that was planned with: `what` says how."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; let it rest and run the same command again")
        self.what = what


@dataclass(frozen=True)
class InputFile:
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

    def check_unchanged(self) -> None:
        """Raise InputChanged where the file is not the one that was planned with, FolioError where it is gone."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError as e:
            raise FolioError(
                f"{self.path} went away while it was read; put it back and run the same command again"
            ) from e
        if (now.st_size, now.st_mtime_ns) != (self.size_bytes, self.mtime_ns):
            sizes = (
                f"{self.size_bytes:,} bytes, now {now.st_size:,}"
                if now.st_size != self.size_bytes
                else "it was written anew"
            )
            raise InputChanged(f"{self.path} changed while it was read ({sizes})")

    def entry(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {"name": self.name, "bytes": self.size_bytes, "sha256": self.sha256}


@dataclass(frozen=True)
class Span:
    """A part of one source: bytes of text and JSONL, row groups of Parquet; `stop` None: to the end."""

    source: int
    start: int = 0
    stop: int | None = None
    size_bytes: int = 0  # about, for the bar and for estimates


def format_by_name(name: str) -> tuple[str | None, str]:
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix, "")
    return SUFFIXES.get(os.path.splitext(stem)[1] if compression else suffix), compression


def describe_input_files(
    named: list[tuple[str, Path]], recipe: Recipe, vouched: dict[str, str], *, num_threads: int
) -> list[InputFile]:
    """A InputFile for each name and path. `vouched`: sha256 by name where it is known already; the others are hashed.

    Raises MisuseError for a file whose format its name does not tell, or whose name does not match `name_pattern`.
    """
    metadata = _metadata_of_names([name for name, _ in named], recipe)
    stats = [path.stat() for _, path in named]  # before they are hashed: what changes from here on is noticed
    with ThreadPoolExecutor(num_threads) as pool:  # hashlib lets other threads run
        hashes = list(pool.map(lambda item: vouched.get(item[0]) or sha256_file(item[1]), named))
    sources = []
    for number, ((name, path), sha256) in enumerate(zip(named, hashes, strict=True)):
        by_name, compression = format_by_name(name)
        format_ = by_name if recipe.format == "auto" else recipe.format
        if name.lower().endswith(ARCHIVES):
            raise MisuseError(
                f"{path} is an archive or of a compression that is not read; unpack it (gzip and zstd are read as they are)"
            )
        if format_ is None:
            raise MisuseError(f"the name of {path} does not tell its format; pass --format text, {', '.join(TABLES)}")
        if compression and format_ == "parquet":
            raise MisuseError(f"{path} is a compressed Parquet file, which compresses by itself; decompress it")
        stat = stats[number]
        sources.append(
            InputFile(
                number, name, str(path), format_, compression, stat.st_size, stat.st_mtime_ns, sha256, metadata[number]
            )
        )
    return sources


def _metadata_of_names(names: list[str], recipe: Recipe) -> list[dict[str, Any]]:
    if recipe.name_pattern is None:
        return [{} for _ in names]
    from preprocess.recipes.templates import parse_name_pattern

    metadata: list[dict[str, Any]] = []
    for name, found in zip(names, parse_name_pattern(recipe.name_pattern).extract(names), strict=True):
        if not found:
            raise MisuseError(
                f"name_pattern {recipe.name_pattern!r} does not match {name!r}; widen the pattern, or leave the file out"
            )
        fields: dict[str, Any] = {field: value for field, value in found.items() if value}
        if "year" in fields:
            if not (fields["year"].isascii() and fields["year"].isdecimal() and len(fields["year"]) <= 4):
                raise MisuseError(
                    f"name_pattern finds the year {fields['year']!r} in {name!r}, wanted up to four digits"
                )
            fields["year"] = int(fields["year"])
        metadata.append(fields)
    return metadata


def settle_format(recipe: Recipe, sources: list[InputFile]) -> Recipe:
    """`recipe` with the one format of all `sources`, where they share one. Raises MisuseError for settings that do not go with theirs."""
    formats = {s.format for s in sources}
    if recipe.split == "contiguous" and formats - {"text"}:
        raise MisuseError(
            f"split is 'contiguous', which cuts text files, and {sources[0].path} is {sources[0].format}; wanted 'exact'"
        )
    if recipe.format == "auto" and len(formats) == 1:
        # Known now, so that settings of other formats do not tell apart builds that are alike.
        recipe = dataclasses.replace(recipe, format=formats.pop())
        reject_without_effect(recipe)
    elif "text" in formats and (recipe.where or recipe.template):
        text = next(s.path for s in sources if s.format == "text")
        raise MisuseError(f"where and template are for tables, and {text} is text; leave it out, or build it by itself")
    return recipe
