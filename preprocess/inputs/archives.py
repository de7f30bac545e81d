"""Read the files in zip and tar archives, one after another, without unpacking them to the disk.

Names in an archive are only shown and matched, and are never used as paths. Links, devices and
hidden files are skipped. Only the bytes of one block are in memory.

The files of a zip archive and of a plain tar archive can be read in any order. A compressed tar
archive can only be read from its beginning, so this module keeps the last one open: as long as its
files are read in their order, it is decompressed once. If each file is read twice before the next
one, to check its columns or to count its characters, the archive is opened twice: the second
position follows the first.
"""

from __future__ import annotations

import functools
import itertools
import os
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, NamedTuple

from preprocess.errors import FolioError, MisuseError, first_line, name_file_in_errors, shorten
from preprocess.inputs.disk_file import DiskFile
from preprocess.inputs.tar_entries import iter_entries, open_tar

ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
TAR_MAGIC, TAR_MAGIC_OFFSET = (b"ustar\0", b"ustar  \0"), 257  # of POSIX and of GNU
MAX_NAME_CHARACTERS = 4_096  # no file system has longer names
MAX_NAMES_CHARACTERS = 64 << 20  # of all files of an archive; these names are in memory several times
MAX_ZIP_LIST_BYTES = 64 << 20  # a name, comments and attributes of each file; every process reads them
MAX_OPEN_TARS = 2  # positions in one compressed tar archive
READABLE_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
DAMAGE = (  # what the modules raise
    tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, MemoryError,
)  # fmt: skip
IS_ENCRYPTED = 1  # a bit of ZipInfo.flag_bits


class Member(NamedTuple):
    """A file in an archive."""

    name: str  # in the archive, with `/`
    entry: int  # index of its entry among all entries of the archive, in their order
    size_bytes: int
    offset: int = -1  # of its first byte in a tar archive that is not compressed


def detect_archive(head: bytes) -> str:
    """Return "zip" or "tar" for the first bytes of a file, decompressed, or "" for any other file."""
    if head.startswith(ZIP_MAGIC):
        return "zip"
    return "tar" if head[TAR_MAGIC_OFFSET:].startswith(TAR_MAGIC) else ""


def clean_member_name(name: str) -> str:
    """Return the name of a file in an archive as that of a file in a folder, without a leading "./" or "/"."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def iter_members(file: DiskFile, kind: str, compression: str) -> Iterator[tuple[Member, IO[bytes]]]:
    """Yield each regular file of an archive with a stream of its bytes, in the order of the archive.

    A stream is valid until the next one is yielded. Raises FolioError if the archive is damaged, and
    MisuseError if a file cannot be read, e.g. because it is encrypted.
    """
    num_characters = 0  # of all names
    for member, stream in _iter_members(file, kind, compression):
        num_characters += len(member.name)
        if len(member.name) > MAX_NAME_CHARACTERS or num_characters > MAX_NAMES_CHARACTERS:
            raise MisuseError(
                f"{file.path} contains {shorten(member.name)}, a name of {len(member.name):,} characters, expected at "
                f"most {MAX_NAME_CHARACTERS:,}, and {MAX_NAMES_CHARACTERS:,} in all names; shorten the names"
            )
        yield member, stream


def _iter_members(file: DiskFile, kind: str, compression: str) -> Iterator[tuple[Member, IO[bytes]]]:
    with explain_damage(file.path, f"a {kind} archive"):
        if kind == "zip":
            archive = _open_zip(file, os.getpid())
            _check_overlaps(archive.infolist())
            for index, entry in enumerate(archive.infolist()):
                if not entry.is_dir() and not _is_hidden(entry.filename):
                    _check_zip_entry(file.path, entry)
                    with archive.open(entry) as stream:
                        yield Member(entry.filename, index, entry.file_size), stream
            return
        with open_tar(file.path, compression) as tar:
            for index, info in enumerate(iter_entries(tar)):
                if info.isreg() and not _is_hidden(info.name):
                    if info.issparse():
                        raise MisuseError(f"{file.path} contains {shorten(info.name)} as a sparse file; unpack it")
                    offset = -1 if compression else info.offset_data
                    yield Member(info.name, index, info.size, offset), _extract(tar, info)


@contextmanager
def open_member(file: DiskFile, kind: str, compression: str, member: Member) -> Iterator[IO[bytes]]:
    """Open one file of an archive. Raises the errors of `iter_members`."""
    if kind == "zip":
        with explain_damage(file.path, "a zip archive"):
            archive = _open_zip(file, os.getpid())
            stream = archive.open(archive.infolist()[member.entry])
        with stream:
            yield stream
    elif not compression:
        with open(file.path, "rb") as raw:
            raw.seek(member.offset)
            yield _Section(raw, member.size_bytes)  # type: ignore[misc]
    else:
        with explain_damage(file.path, "a tar archive"):
            stream = _seek_in_tar(file, compression, member.entry)
        yield stream


class _Section:
    """The next `size_bytes` of a file, as a stream."""

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        self._file, self._num_left = file, size_bytes

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(min(num_bytes, self._num_left))
        if not data and num_bytes and self._num_left:
            raise EOFError("it ends too early")
        self._num_left -= len(data)
        return data


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None  # `info` is a regular file
    return stream


class _OpenTar:
    """A compressed tar archive that is being read, and the entry that it is at."""

    def __init__(self, file: DiskFile, compression: str) -> None:
        self._closing = ExitStack()
        self._tar = self._closing.enter_context(open_tar(file.path, compression))
        self._entries = iter_entries(self._tar)
        self.index = -1

    def seek(self, index: int) -> IO[bytes]:
        """Return a stream of the entry `index`, which is after the current one. After an error, the tar is closed."""
        try:
            for entry in self._entries:
                self.index += 1
                if self.index == index:
                    return _extract(self._tar, entry)
            raise tarfile.ReadError("an entry is missing")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._closing.close()


class _OpenTars(threading.local):
    """The compressed tar archive that this thread read last, opened up to MAX_OPEN_TARS times."""

    def __init__(self) -> None:
        self.key: tuple[DiskFile, int] | None = None  # the file and the process: a fork shares the position in the file
        self.tars: list[_OpenTar] = []  # the one that was used last is at the end


_open_tars = _OpenTars()


def _seek_in_tar(file: DiskFile, compression: str, index: int) -> IO[bytes]:
    """Return a stream of the entry `index`, from the nearest position before it."""
    opened, key = _open_tars, (file, os.getpid())
    if opened.key != key:
        while opened.tars:
            opened.tars.pop().close()
        opened.key = key
    tar = max((tar for tar in opened.tars if tar.index < index), key=lambda tar: tar.index, default=None)
    if tar is not None:
        opened.tars.remove(tar)
    else:
        if len(opened.tars) == MAX_OPEN_TARS:
            opened.tars.pop(0).close()
        tar = _OpenTar(file, compression)
    stream = tar.seek(index)
    opened.tars.append(tar)
    return stream


@functools.lru_cache(maxsize=4)
def _open_zip(file: DiskFile, process: int) -> zipfile.ZipFile:
    """Open a zip archive once per process: a fork shares the position in the file.

    Raises MisuseError if the list of its files, which zipfile reads into memory, is too large.
    """
    with open(file.path, "rb") as raw:
        end = zipfile._EndRecData(raw)  # type: ignore[attr-defined]  # also of an archive of more than 4 GB
    if end and end[zipfile._ECD_SIZE] > MAX_ZIP_LIST_BYTES:  # type: ignore[attr-defined]
        raise MisuseError(
            f"{file.path} has a list of files of {end[zipfile._ECD_SIZE]:,} bytes, expected at most "  # type: ignore[attr-defined]
            f"{MAX_ZIP_LIST_BYTES:,}; unpack it"
        )
    return zipfile.ZipFile(file.path)


def _check_overlaps(entries: list[zipfile.ZipInfo]) -> None:
    """Raise BadZipFile if files share bytes of the archive: so a few megabytes can stand for terabytes of text."""
    for entry, following in itertools.pairwise(sorted(entries, key=lambda entry: entry.header_offset)):
        if entry.header_offset + zipfile.sizeFileHeader + entry.compress_size > following.header_offset:  # type: ignore[attr-defined]
            raise zipfile.BadZipFile(f"{shorten(entry.filename)} overlaps with {shorten(following.filename)}")


def _check_zip_entry(path: str, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & IS_ENCRYPTED:
        raise MisuseError(f"{path} is encrypted ({shorten(entry.filename)}); unpack it with its password")
    if entry.compress_type not in READABLE_ZIP_METHODS:
        raise MisuseError(
            f"{path} contains {shorten(entry.filename)} with compression method {entry.compress_type}, "
            "expected stored, deflate or bzip2; unpack it"
        )


def _is_hidden(name: str) -> bool:
    """Return whether a name, or a folder in it, begins with a dot, or is what macOS adds to an archive."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") and part not in (".", "..") for part in parts)


@contextmanager
def explain_damage(path: str, expected: str) -> Iterator[None]:
    """Raise FolioError in place of the errors of the modules that read compressed files and archives.

    The module bz2 raises OSError without a number for damaged data.
    """
    try:
        with name_file_in_errors(path):
            yield
    except (*DAMAGE, OSError) as e:
        if isinstance(e, OSError) and e.errno is not None:  # an error of the system
            raise
        if isinstance(e, MemoryError):
            problem = first_line(e) or "it needs too much memory"
            raise FolioError(f"{path} cannot be read as {expected} ({problem}); decompress it first") from e
        raise FolioError(
            f"{path} cannot be read as {expected} ({first_line(e)}): it is damaged or truncated; copy it again"
        ) from e
