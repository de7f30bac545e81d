"""Files of token ids that another program wrote: what a reader of such files takes and returns.

The readers are in `exchange/`, one for each format, beside the function that writes it. `build/`
makes a build of the documents that they return.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.inputs.disk_file import NO_SHA256, DiskFile
from preprocess.inputs.input_files import InputFile
from preprocess.shards.files import open_regular_file, sha256_file

# A document is in memory as a whole. This is about 130 MB of text; builds cut documents at 64 MB.
MAX_DOCUMENT_TOKENS = 1 << 25
BATCH_TOKENS = 1 << 20  # of a batch, unless one document has more


@dataclass(frozen=True)
class TokenBatch:
    """D complete documents with N tokens in total."""

    ids: np.ndarray  # (N,) of any integer dtype
    ends: np.ndarray  # (D,) int64, exclusive end of each document in `ids`
    files: np.ndarray  # (D,) int64, the number of the file in which each document begins
    mask: np.ndarray | None = None  # (N,) bool, the loss mask, if the format has one
    languages: list[str | None] | None = None  # of each document


@dataclass(frozen=True)
class TokenFile:
    """A file of tokens, and the files beside it that describe its documents."""

    tokens: InputFile
    companions: dict[str, InputFile] = field(default_factory=dict)  # by suffix

    @property
    def path(self) -> Path:
        return Path(self.tokens.path)

    @property
    def number(self) -> int:
        """The index of the file in the manifest's `sources`."""
        return self.tokens.number


@dataclass(frozen=True)
class TokenIds:
    """What a reader must know about the ids."""

    vocab_size: int
    eot_id: int | None


class TokenReader(Protocol):
    """Reads the documents of a format."""

    def __call__(self, files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
        """Yield the documents of `files` in order. Raises FolioError if a file is damaged."""


@dataclass(frozen=True)
class TokenNames:
    """How the files of a format are named."""

    suffix: str  # of the file of tokens
    required: tuple[str, ...] = ()  # suffixes of its companions
    optional: tuple[str, ...] = ()
    replaces_suffix: bool = True  # whether a companion's suffix replaces `suffix`, or follows it
    check_folder: Callable[[Path], None] | None = None  # raises FolioError if files of a folder are missing
    # Raises FolioError if the sizes of a file and its companions do not fit together. Hashing takes minutes for large
    # files, so this is called before.
    check_sizes: Callable[[TokenFile], None] | None = None
    # Returns warnings about the files of a split, in the order in which they are read.
    find_missing: Callable[[Sequence[TokenFile], TokenIds], list[str]] | None = None

    def find_companions(self, path: Path) -> dict[str, Path]:
        """Return the companions of a file of tokens, by suffix. Raises MisuseError if one is missing."""
        stem = path.name.removesuffix(self.suffix) if self.replaces_suffix else path.name
        paths = {suffix: path.with_name(stem + suffix) for suffix in (*self.required, *self.optional)}
        for suffix in self.required:
            if not paths[suffix].exists():
                raise MisuseError(
                    f"{paths[suffix]} is missing, which lists the documents of {path.name}; put it beside the file"
                )
        return {suffix: path for suffix, path in paths.items() if path.exists()}

    def find_tokens(self, companion: str, suffix: str) -> str:
        """Return the name of the file of tokens to which a companion with this name and suffix belongs."""
        stem = companion.removesuffix(suffix)
        return stem + self.suffix if self.replaces_suffix else stem


def describe_token_files(paths_of_splits: Sequence[Sequence[Path]], names: TokenNames) -> list[list[TokenFile]]:
    """Return the files of tokens of each split with their companions, hashed and numbered from 0.

    In the manifest, they have their paths relative to the deepest folder that contains all of them. Raises
    MisuseError if a companion is missing or a name is not UTF-8, FolioError if a path is not a regular file or
    two files of a split have the same content, and what `names.check_sizes` raises.
    """
    paths = [Path(os.path.abspath(path)) for paths in paths_of_splits for path in paths]
    root = os.path.commonpath([path.parent for path in paths])
    splits, number = [], 0
    for paths in map(list, paths_of_splits):
        files = []
        for path in paths:
            described = {}
            for suffix, companion in {"": path, **names.find_companions(path)}.items():
                name = Path(os.path.relpath(companion, root)).as_posix()
                described[suffix] = _describe(companion, name, number)
                number += 1
            files.append(TokenFile(described.pop(""), described))
            if names.check_sizes is not None:
                names.check_sizes(files[-1])
        splits.append(files)
    hashed = [[_hash(file) for file in files] for files in splits]
    for files in hashed:
        _check_contents(files)
    return hashed


def _check_contents(files: list[TokenFile]) -> None:
    """Raise FolioError if two files of a split are copies: their documents would be in the build twice."""
    seen: dict[str, TokenFile] = {}
    for file in files:
        other = seen.setdefault(file.tokens.sha256, file)
        if other is not file and file.tokens.size_bytes:
            raise FolioError(
                f"{other.path} and {file.path} have the same content, so each document would be in the build twice; "
                "delete one of them, or name the files to import"
            )


def _describe(path: Path, name: str, number: int) -> InputFile:
    """Return a file that is not hashed yet."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise MisuseError(
            f"the name {shorten(repr(name))} is not UTF-8, so the manifest cannot contain it; rename the file"
        ) from None
    with open_regular_file(path) as file:
        stat = os.fstat(file.fileno())  # before hashing, so that a change during hashing is detected
    disk = DiskFile(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, NO_SHA256)
    return InputFile(disk, "tokens", stat.st_size, NO_SHA256, number=number, name=name)


def _hash(file: TokenFile) -> TokenFile:
    """Return the file and its companions with their hashes."""

    def add_sha256(each: InputFile) -> InputFile:
        sha256 = sha256_file(Path(each.disk.path))
        return each._replace(disk=each.disk._replace(sha256=sha256), sha256=sha256)

    return TokenFile(add_sha256(file.tokens), {suffix: add_sha256(each) for suffix, each in file.companions.items()})
