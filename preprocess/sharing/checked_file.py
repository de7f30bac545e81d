"""A file of a build that is hashed while it is written, and gets its name only if the hash is right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from preprocess.shards.files import HASH_CHUNK_BYTES, sha256_file, start_writing_back
from preprocess.shards.manifest_file import ShardError
from preprocess.sharing.build_files import BuildFile

WRITE_BACK_BYTES = 16 << 20  # the disk begins with them while the next ones are copied


def has_file(folder: Path, file: BuildFile) -> bool:
    """Return whether `folder` has a file with the size and the hash of `file`."""
    path = folder / file.name
    has_size = path.is_file() and file.size_bytes in (None, path.stat().st_size)
    return has_size and sha256_file(path) == file.sha256


class CheckedFile:
    """A file of a build that is being written in `folder`.

    What an earlier attempt has written is kept and hashed again. After a power failure it can have
    zeros in place of its last bytes, which the hash of the whole file reveals.
    """

    def __init__(self, folder: Path, file: BuildFile, shown: str) -> None:
        """`shown`: the file and where it comes from, for messages."""
        self._file, self._shown = file, shown
        self._path = folder / file.name
        self._partial = self._path.with_name(f".{self._path.name}.partial")  # hidden, so no other file has this name
        self._path.parent.mkdir(exist_ok=True)
        self._out = open(self._partial, "r+b" if self._partial.exists() else "w+b", buffering=0)  # noqa: SIM115
        size_bytes = os.fstat(self._out.fileno()).st_size
        self.position = 0
        self.rewind(size_bytes if size_bytes <= file.max_bytes else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._out.close()

    def rewind(self, position: int) -> None:
        """Keep the first `position` bytes only."""
        self._out.seek(0)
        self._digest = hashlib.sha256()
        num_left = position
        while chunk := self._out.read(min(num_left, HASH_CHUNK_BYTES)):
            self._digest.update(chunk)
            num_left -= len(chunk)
        self._out.truncate(position)
        self.position = self._written_back = position

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes. Raises ShardError if the file becomes larger than it can be."""
        if self.position + len(chunk) > self._file.max_bytes:
            raise ShardError(
                f"{self._shown} has more than {self._file.max_bytes:,} bytes, the size in its manifest; get "
                "another copy of the build"
            )
        view = memoryview(chunk)
        while len(view):  # a file without a buffer may write a part only
            view = view[self._out.write(view) :]
        self._digest.update(chunk)
        self.position += len(chunk)
        if self.position - self._written_back >= WRITE_BACK_BYTES:
            self._write_back()

    def _write_back(self) -> None:
        start_writing_back(self._out.fileno(), self._written_back, self.position)
        self._written_back = self.position

    def is_right(self) -> bool:
        """Return whether the file has the size and the hash that the manifest says."""
        return self._file.size_bytes in (None, self.position) and self._digest.hexdigest() == self._file.sha256

    def finish(self) -> None:
        """Give the file its name. Raises ShardError if its content is wrong.

        It may not be on the disk yet. `publish` flushes all files together: the flush of one can wait
        for the data of the others.
        """
        if not self.is_right():
            self._out.close()
            self._partial.unlink()  # continuing it would never help
            raise ShardError(
                f"{self._shown} does not have the size and sha256 in its manifest; get another copy of the build"
            )
        self._write_back()
        self._out.close()
        os.replace(self._partial, self._path)
