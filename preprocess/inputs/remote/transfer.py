"""Copy one remote file to the cache, and continue a copy that was interrupted.

A copy has the suffix `.partial` until it is whole: it is flushed to the disk, its size and digest
are checked, and then it is renamed. Every few seconds the copy is flushed and its length written to
`.position`. A copy continues from there, and not from its end, because after a power failure a file
can have its full length and zeros instead of its last bytes.

A failed request is repeated from the last byte that arrived. Only failures without a new byte in
between count, so a bad connection slows a copy down and does not end it.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from preprocess.errors import FolioError, shorten
from preprocess.inputs.remote.cache import get_cached_path, get_partial_path, has_file
from preprocess.inputs.remote.remote_file import RemoteFile, Service, TransferBroken, Unreachable
from preprocess.shards.files import HASH_CHUNK_BYTES, sync_folder, write_durable

MAX_FAILURES = 6  # in a row, without a new byte
BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
MAX_WAIT_S = 600.0  # that a service may ask for
SYNC_INTERVAL_S = 5.0
LOCK_INTERVAL_S = 0.5
Result = TypeVar("Result")


class Cancelled(Exception):
    """The command was interrupted."""


@dataclass(frozen=True)
class Transfers:
    """What all transfers of a command share."""

    is_cancelled: threading.Event
    report: Callable[[int], None]  # called with each number of bytes that arrived

    def fetch(self, file: RemoteFile, service: Service) -> Path:
        """Return the path of a whole copy of `file`, which is made if the cache has none.

        Raises FolioError if the file cannot be obtained or is damaged, Cancelled after an
        interruption.
        """
        import filelock

        path = get_cached_path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{path}.lock")
        while True:  # another command may be copying the same file
            try:
                lock.acquire(timeout=LOCK_INTERVAL_S)
                break
            except filelock.Timeout:
                self.check_cancelled()
        try:
            if has_file(file) and file.version:
                return path
            partial = get_partial_path(file)
            self._copy(file, service, partial)
            if path.exists() and filecmp.cmp(path, partial, shallow=False):
                partial.unlink()  # another process may be reading the file that is there
            else:
                os.replace(partial, path)
            _get_position_path(partial).unlink(missing_ok=True)
            sync_folder(path.parent)
            return path
        finally:
            lock.release()

    def _copy(self, file: RemoteFile, service: Service, partial: Path) -> None:
        start = _find_position(partial) if file.can_continue else 0
        with open(partial, "r+b" if start else "wb") as out:
            out.truncate(start)
            out.seek(start)
            self.report(start)

            def copy_rest() -> None:
                self._copy_rest(file, service, out)

            try:
                self.try_again(copy_rest, shown=file.origin, get_position=out.tell)
            except BaseException:
                with suppress(OSError):  # the disk may be full
                    _sync(out, partial)  # the next attempt continues here
                raise
            _sync(out, partial)
        try:
            _check(file, partial)
        except FolioError:
            partial.unlink()  # continuing it would never help
            raise

    def _copy_rest(self, file: RemoteFile, service: Service, out: BinaryIO) -> None:
        """Append the bytes that are missing to `out`. Raises TransferBroken if they end too early."""
        position = out.tell() if file.can_continue else 0
        if position and position == file.size_bytes:
            return
        synced_at = time.monotonic()
        with service.open(file, position) as body:
            if body.start != out.tell():
                self.report(body.start - out.tell())
                out.seek(body.start)
                out.truncate()
            for chunk in body.chunks:
                self.check_cancelled()
                out.write(chunk)
                self.report(len(chunk))
                if file.size_bytes is not None and out.tell() > file.size_bytes:
                    break  # an endless answer must not fill the disk
                if time.monotonic() - synced_at > SYNC_INTERVAL_S:
                    _sync(out, Path(out.name))
                    synced_at = time.monotonic()
        if file.size_bytes is not None and out.tell() < file.size_bytes:
            raise TransferBroken("the connection was lost")

    def try_again(self, work: Callable[[], Result], *, shown: str, get_position: Callable[[], int] = int) -> Result:
        """Return the result of `work`, which is called again while it raises TransferBroken.

        `shown` names the work in messages. `get_position` returns the number of bytes that it has
        copied. Without a connection, the work is repeated only if it has copied any.
        """
        num_failures, position = 0, get_position()
        while True:
            try:
                return work()
            except (TransferBroken, Unreachable) as e:
                if get_position() > position:
                    num_failures, position = 0, get_position()
                num_failures += 1
                if num_failures > MAX_FAILURES or (isinstance(e, Unreachable) and not position):
                    raise _give_up(e, shown) from e
                wait_s = min(BACKOFF_S * 2 ** (num_failures - 1), MAX_BACKOFF_S)
                if isinstance(e, TransferBroken) and e.wait_s is not None:
                    if e.wait_s > MAX_WAIT_S:
                        raise FolioError(f"{e} and asks to wait {e.wait_s:,.0f} s; run the same command later") from e
                    wait_s = max(wait_s, e.wait_s)
                if self.is_cancelled.wait(wait_s):
                    raise Cancelled from e

    def check_cancelled(self) -> None:
        """Raise Cancelled if the command was interrupted."""
        if self.is_cancelled.is_set():
            raise Cancelled


def _give_up(error: Exception, shown: str) -> FolioError:
    if isinstance(error, Unreachable):
        return error
    reason = str(error) if shorten(shown) in str(error) else f"{shorten(shown)}: {error}"
    return FolioError(f"{reason}; run the same command again, it continues where it stopped")


def _sync(out: BinaryIO, partial: Path) -> None:
    """Flush the copy to the disk, and then write how long it is."""
    out.flush()
    os.fsync(out.fileno())
    write_durable(_get_position_path(partial), str(out.tell()).encode())


def _get_position_path(partial: Path) -> Path:
    return partial.with_suffix(".position")


def _find_position(partial: Path) -> int:
    """Return how many bytes of an interrupted copy can be kept."""
    with suppress(OSError, ValueError):
        position = int(_get_position_path(partial).read_bytes()[:20])
        return position if 0 <= position <= partial.stat().st_size else 0
    return 0


def _check(file: RemoteFile, partial: Path) -> None:
    """Raise FolioError if the copy has not the size or the digest that the service says."""
    size_bytes = partial.stat().st_size
    advice = "run the same command again to copy it anew"
    if file.size_bytes not in (None, size_bytes):
        raise FolioError(f"{file.origin} sent {size_bytes:,} bytes or more, expected {file.size_bytes:,}; {advice}")
    if not file.digest:
        return
    kind, _, expected = file.digest.partition(":")
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {size_bytes}\0".encode())
    with open(partial, "rb") as copy:
        while chunk := copy.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise FolioError(f"{file.origin} was damaged on the way (it has another {digest.name}); {advice}")
