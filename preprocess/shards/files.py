"""Atomic writes, hashes, and the two JSON formats of Folio. Uses only the standard library.

A process can be killed while it writes a file, and a machine can lose power. So a file is written
under a temporary name in the same folder, flushed to the disk with fsync, and then renamed. A
rename is atomic: readers find the old file or the complete new file. The folder is flushed as well,
because a file's name is stored in the folder, not in the file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase, BufferedReader, BytesIO, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from preprocess.errors import FULL_DISK, FolioError, MisuseError, name_file_in_errors

HASH_CHUNK_BYTES = 1 << 20
COPY_BLOCK_BYTES = 256 << 10  # stays in a core's cache while it is hashed and written; more takes a third more time
MAX_SMALL_FILE_BYTES = 64 << 20  # of a file that is read as a whole
MAX_ROW_BYTES = 128 << 20  # of a line in a JSON-lines file
# Of one JSON text. Each takes about 100 bytes. A manifest of a million input files has 5 million.
MAX_JSON_VALUES = 8_000_000
JSON_CHUNKS = 1 << 12  # of a few characters, which are encoded at once
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # of a file that is not hidden, without a folder
REPLACED_SUFFIX = ".replaced"  # of a directory that is being replaced

JsonObject = dict[str, Any]  # a parsed JSON object; its values are checked where they are read
Row = TypeVar("Row")


def canonical_json(value: Any) -> bytes:
    """Return `value` as the JSON that hashes are computed from: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def readable_json(value: Any) -> bytes:
    """Return `value` as the JSON that files contain: sorted keys, indented, a final line feed."""
    chunks = json.JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False).iterencode(value)
    data = BytesIO()
    # With `json.dumps`, all chunks of a few characters are in memory at once: of a large manifest, a gigabyte.
    while part := "".join(itertools.islice(chunks, JSON_CHUNKS)):
        data.write(part.encode())
    data.write(b"\n")
    return data.getvalue()


def parse_json(data: bytes) -> Any:
    """Return the value of the JSON text `data`.

    Raises ValueError for anything that a JSON writer of Folio cannot have written: invalid syntax,
    NaN, infinities and numbers that are too large for a float, values nested more deeply than
    Python's recursion limit, and escapes of lone surrogates, which have no UTF-8 form. A text with more
    than MAX_JSON_VALUES commas and opening brackets raises it, too: `[[],[],…]` takes 20 times its size.
    """
    if len(data) > MAX_JSON_VALUES and sum(map(data.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values")
    try:
        value = _DECODER.decode(data.decode(json.detect_encoding(data), "surrogatepass"))
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if b"\\u" in data:
        _check_encodable(value)
    return value


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _parse_finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


# `json.loads` would make a decoder for each text.
_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_parse_finite)


def _check_encodable(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it contains half of a surrogate pair, which is not a character") from None


def read_small_file(path: Path, max_bytes: int = MAX_SMALL_FILE_BYTES) -> bytes:
    """Return the content of a regular file of at most `max_bytes`.

    Use this for untrusted files that are read as a whole, such as settings, manifests and models.
    With `open`, opening a named pipe may wait forever, and reading a device may never end.

    Raises FolioError if `path` is not a regular file or is larger, OSError if it cannot be opened.
    """
    with open_regular_file(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        data = b""
        if size_bytes <= max_bytes:  # a file that is too large is not read
            data = file.read(size_bytes + 1)
            while len(data) <= max_bytes and (block := file.read(HASH_CHUNK_BYTES)):  # was appended since fstat
                data += block
        if size_bytes > max_bytes or len(data) > max_bytes:
            raise FolioError(f"{path} has {size_bytes:,} bytes, expected at most {max_bytes:,}; is it the right file?")
    return data


def find_blocking_file(folder: Path) -> Path | None:
    """Return the path that prevents creating `folder` because it is not a folder: `folder` itself or one above it."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return None if existing is None or existing.is_dir() else existing


def check_output_file(path: Path, *, replace: bool) -> None:
    """Raise MisuseError unless a command may write `path`: it does not exist, or is a file and `replace` is true."""
    if os.path.lexists(path) and not path.is_file():
        raise MisuseError(f"{path} exists and is not a regular file; remove it, or choose another --output")
    if path.exists() and not replace:
        raise MisuseError(f"{path} exists already; pass --replace, or choose another --output")


@contextmanager
def open_regular_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading bytes. A named pipe is rejected, not waited for.

    Raises FolioError if `path` is not a regular file, OSError if it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FolioError(f"{path} is not a regular file; put a file there, not a folder, a pipe or a device")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_json_lines(path: Path, parse_row: Callable[[JsonObject], Row], *, row_name: str, advice: str) -> list[Row]:
    """Return the rows that `open_json_lines` yields, as a list."""
    return list(open_json_lines(path, parse_row, row_name=row_name, advice=advice))


def open_json_lines(
    path: Path,
    parse_row: Callable[[JsonObject], Row],
    *,
    row_name: str,
    advice: str,
    drop_bad_last_line: bool = False,
    max_row_bytes: int | None = None,
) -> Iterator[Row]:
    """Open a JSON-lines file, and return an iterator over its rows. Blank lines are skipped.

    A file that does not exist has no rows. The file is opened by the call, and has the rows of that
    moment, also if it is replaced or appended to before they are read. One line at a time is in memory.

    `parse_row` converts the JSON object of a line to a row; it raises ValueError or TypeError to
    reject it. A last line without a line feed is dropped, because a crash interrupted its write.
    With `drop_bad_last_line` the last complete line is dropped too if it is rejected: if a file is
    appended to, a power failure can leave a block of zeros at its end.

    Raises FolioError for any other line that is not JSON, is rejected, or has more than
    `max_row_bytes` (by default MAX_ROW_BYTES), and if `path` is not a regular file. The message contains
    `row_name`, a noun phrase for what the line should be, and `advice`, what to do.
    """
    if not path.exists():
        return iter(())
    limit = max_row_bytes or MAX_ROW_BYTES
    stack = ExitStack()
    file = stack.enter_context(open_regular_file(path))
    size_bytes = os.fstat(file.fileno()).st_size

    def read_rows() -> Iterator[Row]:
        num_left = size_bytes
        with stack:
            for number in itertools.count(1):
                line = file.readline(min(limit, num_left))
                num_left -= len(line)
                if not line.endswith(b"\n") and len(line) < limit:  # the end of the file
                    break
                if not line.strip():
                    continue
                try:
                    row = _parse_line(line, parse_row, limit)
                except (ValueError, TypeError, OverflowError) as e:
                    is_last = line.endswith(b"\n") and not file.readline(limit).endswith(b"\n")
                    if drop_bad_last_line and is_last:
                        break
                    raise FolioError(f"{path}, line {number} is not {row_name} ({e}); {advice}") from e
                yield row

    return read_rows()


def _parse_line(line: bytes, parse_row: Callable[[JsonObject], Row], max_row_bytes: int) -> Row:
    if not line.endswith(b"\n"):
        raise ValueError(f"it has more than {max_row_bytes:,} bytes")
    value = parse_json(line)
    if not isinstance(value, dict):
        raise TypeError("it is not an object")
    return parse_row(value)


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which is read in blocks."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_blocks(file: RawIOBase | BufferedIOBase) -> Iterator[memoryview]:
    """Yield the rest of a file in blocks. Each has the memory of the one before it, which is then lost.

    Copying is limited by the memory: blocks with memory of their own take half as much time again.
    """
    block = memoryview(bytearray(COPY_BLOCK_BYTES))
    while num_bytes := file.readinto(block):
        yield block[:num_bytes]


def sync_file(path: Path) -> None:
    """Flush the content of a file to the disk."""
    with open(path, "r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def start_writing_back(descriptor: int, begin: int, end: int) -> None:
    """Let the system begin to write the bytes `begin` to `end` − 1 of a file to the disk, without waiting.

    Linux may keep gigabytes in memory, so that the disk is idle until somebody waits for a flush. A
    system without such a call begins when it likes.
    """
    if hasattr(os, "posix_fadvise"):  # says that the pages are not needed; those that are not written yet stay
        os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Flush the entries of `folder` (its file names) to the disk.

    On Windows, which cannot do this, the call has no effect.
    """
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_free_space(folder: Path, num_bytes: int, *, needed_by: str, advice: str) -> None:
    """Raise FolioError if the disk of `folder` has less than `num_bytes` free.

    For the message: `needed_by` says what has this many bytes, such as "the build needs", and
    `advice` says how to choose another folder.
    """
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes > free_bytes:
        raise FolioError(
            f"no space left on the disk: {folder} has {free_bytes:,} bytes free, {needed_by} {num_bytes:,}; "
            f"free some, or {advice}"
        )


FileVersion = tuple[int, ...] | None


def read_version(path: Path) -> FileVersion:
    """Return the inode, times and size of a file, or None if it does not exist."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # The ctime is needed: a copied file can have the modification time of a deleted one, and even its inode.
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def check_version(path: Path, version: FileVersion) -> None:
    """Raise FolioError if `path` was made, changed or replaced since `read_version` returned `version`."""
    if read_version(path) != version:
        raise FolioError(f"{path} was written by another program meanwhile; choose another --output, or run it again")


def make_partial_path(path: Path) -> Path:
    """Return a hidden path beside `path` for what is being written.

    The name is random, because a process on another machine or in another container may have the same id.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing, which replaces `path` if the block succeeds.

    After the block the new file is complete and on the disk. After an exception `path` is unchanged
    and the temporary file is deleted.
    """
    temporary = make_partial_path(path)
    try:
        with name_file_in_errors(str(path), only=FULL_DISK), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_durable(path: Path, data: bytes) -> None:
    """Write `data` to `path`. A crash leaves the old file or the complete new file.

    Raises OSError with `path` as its file name, if writing fails.
    """
    try:
        with open_atomic(path) as file:
            file.write(data)
    except OSError as e:  # it names the temporary file or no file
        raise OSError(e.errno, e.strerror, str(path)) from e


def write_flushed(path: Path, data: bytes) -> None:
    """Write `data` to `path` and flush it to the disk, but not the entry of `path` in its folder.

    This suffices in a new directory that `replace_directory` publishes, and takes half the time of
    `write_durable`. Raises OSError with `path` as its file name, if writing fails.
    """
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:  # the error of a write names no file
        raise OSError(e.errno, e.strerror, str(path)) from e


def replace_directory(new: Path, target: Path) -> None:
    """Rename the directory `new` to `target`, and delete the directory that was `target`, if any.

    The files in `new` must be on the disk already; this function flushes the directory entries. An
    exception leaves `target` as it was. A rename cannot replace a directory that is not empty, so
    the old directory is first renamed to `.NAME.PID.replaced`. If the process is killed between the
    two renames, `restore_replaced_directory` undoes the first one.
    """
    sync_folder(new)
    old = target.parent / f".{target.name}.{os.getpid()}{REPLACED_SUFFIX}"
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        if old.exists():
            os.rename(old, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def open_new_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target`, which replaces it at the end of the block.

    The block must write its files durably. If it raises an exception, the new directory is deleted.
    """
    temporary = make_partial_path(target)
    try:
        temporary.mkdir()
        yield temporary
        replace_directory(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore_replaced_directory(target: Path) -> None:
    """Undo an interrupted `replace_directory`.

    The old directory is put back if the new one is missing, and is deleted otherwise.
    """
    name = re.compile(rf"\.{re.escape(target.name)}\.\d+{re.escape(REPLACED_SUFFIX)}")
    for old in sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name)):
        if not target.exists():
            os.rename(old, target)
        # This has no effect if `old` was just renamed. On Windows, files that a process has mapped
        # cannot be deleted and remain.
        shutil.rmtree(old, ignore_errors=True)
