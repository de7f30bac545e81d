"""The work folder of a build: what its tasks hand to each other, and what a build that was killed finds again.

`.NAME.work/KEY/` beside the build, KEY the hash of all that went in: another recipe, input or format has another folder. A file counts
only with its receipt, written behind it, which holds its size and hash: no fsync is needed, for what a crash has damaged does not match.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from preprocess.shards.files import parse_json
from preprocess.shards.format import map_array

# One document, as prepared. `group`: what may not straddle the split; author, city and lang: numbers in the partition's lists, −1 for none.
DOCUMENT = np.dtype(
    [
        ("hash", "u1", 16), ("group", "u1", 16), ("position", "<u8"), ("text_bytes", "<u4"), ("source", "<u4"),
        ("author", "<i4"), ("city", "<i4"), ("year", "<i4"), ("lang", "<i4"), ("side", "i1"), ("has_u2581", "?"),
    ]
)  # fmt: skip
DROPPED = -1  # as decided
LENGTH = np.dtype("<u4")  # tokens of each document, control ids included
REFUSED = "refused.jsonl"


@dataclass(frozen=True)
class WorkFolder:
    """Where the files of each partition lie: `part-00007.docs`, `.ids`, `.lengths`, `.text`, `.prepare.json` and the like."""

    path: Path

    def file(self, number: int, suffix: str) -> Path:
        return self.path / f"part-{number:05d}.{suffix}"

    @contextmanager
    def writing(self, number: int, *suffixes: str) -> Iterator[dict[str, Any]]:
        """Files to write, by suffix; they take their places when the block ends well."""
        asides = {suffix: self.path / f"part-{number:05d}.{suffix}.{os.getpid()}.partial" for suffix in suffixes}
        files = {}
        try:
            for suffix, aside in asides.items():
                files[suffix] = HashedFile(aside)
            yield files
            for suffix, file in files.items():
                file.close()
                os.replace(asides[suffix], self.file(number, suffix))
        finally:
            for suffix, file in files.items():
                file.close()
                asides[suffix].unlink(missing_ok=True)

    def save_receipt(self, number: int, task: str, fields: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
        """Note that `task` is done with the partition: `fields`, and size and hash of the `files` it wrote."""
        receipt = {**fields, "files": {suffix: [file.size_bytes, file.hash] for suffix, file in files.items()}}
        aside = self.file(number, f"{task}.{os.getpid()}.partial")
        aside.write_bytes(json.dumps(receipt).encode())
        os.replace(aside, self.file(number, f"{task}.json"))
        return receipt

    def receipt(self, number: int, task: str) -> dict[str, Any] | None:
        """What `task` noted of the partition, if its files are what they were; else None, and the task must be done again."""
        try:
            receipt = parse_json(self.file(number, f"{task}.json").read_bytes())
            for suffix, (size_bytes, hash_) in receipt["files"].items():
                path = self.file(number, suffix)
                if path.stat().st_size != size_bytes or hash_file(path) != hash_:
                    return None
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return dict(receipt)

    def documents(self, number: int) -> np.ndarray:
        """The table of documents of a partition: (D,) of DOCUMENT, mapped."""
        return map_array(self.file(number, "docs"), DOCUMENT)

    def lengths(self, number: int) -> np.ndarray:
        """Tokens of each document of a partition: (D,) u4."""
        return map_array(self.file(number, "lengths"), LENGTH)

    def sides(self, number: int) -> np.ndarray:
        """Each document's side, TRAIN, VAL or DROPPED, as decided: (D,) int8, mapped for reading and writing."""
        path = self.file(number, "sides")
        return np.memmap(path, np.int8, "r+") if path.stat().st_size else np.empty(0, np.int8)


class HashedFile:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `writing`)
        self._path = path
        self._digest = xxhash.xxh3_64()
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        """Write an array or bytes."""
        view = np.ascontiguousarray(data).view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data)
        try:
            self._file.write(view)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._path)) from e  # a write's own error does not say which disk
        self._digest.update(view)
        self.size_bytes += view.nbytes
        return view.nbytes

    @property
    def hash(self) -> str:
        return str(self._digest.hexdigest())

    @property
    def closed(self) -> bool:
        return self._file.closed

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def hash_file(path: Path) -> str:
    """XXH3's 64 bits of a file's content, hexadecimal."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return str(digest.hexdigest())


def work_root(folder: Path) -> Path:
    """Where work on the build `folder` lies."""
    return folder.parent / f".{folder.name}.work"


def open_work(folder: Path, key: str) -> WorkFolder:
    """The work folder of this very job, which may hold what an earlier attempt has done; that of any other job is deleted."""
    root = work_root(folder)
    root.mkdir(parents=True, exist_ok=True)
    for other in root.iterdir():
        if other.name != key:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    path = root / key
    path.mkdir(exist_ok=True)
    for stale in path.rglob("*.partial"):
        stale.unlink(missing_ok=True)
    return WorkFolder(path)
