"""Threads that copy the files of a build: the parts that a reader waits for first, then the rest in order.

A random window can be anywhere, so the first batches of a run touch most shards, and waiting for
whole shards would mean waiting for the build. So a reader asks for the bytes that it needs, and waits only
for the blocks around them. Meanwhile, half of the threads copy everything else.

A block cannot be checked: the manifest has the hash of a file. A file is hashed as soon as it is
whole, and if the hash is wrong, the next request raises an error.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.errors import FolioError, explain_os_error
from preprocess.inputs.remote.remote_file import TransferBroken
from preprocess.inputs.remote.transfer import Cancelled, Transfers
from preprocess.shards.manifest_file import ShardError
from preprocess.sharing.arriving_file import ArrivingFile
from preprocess.sharing.sources import Source

NUM_THREADS = 4
NUM_FILLING = 2  # of them copy what nobody waits for
FILL_BYTES = 16 << 20  # copied with one request
NEEDED, REST = 0, 1  # priorities


@dataclass(frozen=True)
class _Part:
    """The bytes `begin` to `end` − 1 of a file."""

    file: ArrivingFile
    begin: int
    end: int
    priority: int


class Arrivals:
    """The files of a build that are not whole yet."""

    def __init__(self, source: Source, files: list[ArrivingFile]) -> None:
        self._source, self._files = source, {file.file.name: file for file in files}
        self._tasks: queue.PriorityQueue[tuple[int, int, _Part]] = queue.PriorityQueue()
        self._numbers = itertools.count()  # parts of equal priority are copied in the order of requests
        self._transfers = Transfers(threading.Event(), lambda num_bytes: None)
        self._changed = threading.Condition()
        self._failure: Exception | None = None
        self._rest = self._list_rest()

    def start(self) -> None:
        """Begin to copy."""
        for _ in range(NUM_FILLING):
            self._submit_rest()
        for _ in range(NUM_THREADS):
            threading.Thread(target=self._work, daemon=True).start()  # a run must be able to end before the copy

    def close(self) -> None:
        """Stop copying, and note what has arrived."""
        self._transfers.is_cancelled.set()
        for file in self._files.values():
            file.save()

    @property
    def num_unchecked(self) -> int:
        """The number of files that are not whole, so that nothing in them could be checked."""
        return sum(not file.is_whole for file in self._files.values())

    def wait_for(self, needed: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
        """Wait for bytes of files: for each its name, and the begins and exclusive ends of ranges, (B,) int64 each.

        Raises FolioError if they cannot be copied, and ShardError if a file turned out to be damaged.
        """
        for name, begin, end in needed:
            file = self._files[name]
            for first, last in file.find_missing(begin, end):
                self._submit(_Part(file, first, last, NEEDED))
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or not any(self._files[name].find_missing(*ends) for name, *ends in needed)
            )
            if self._failure:
                raise self._failure

    def _submit(self, part: _Part) -> None:
        self._tasks.put((part.priority, next(self._numbers), part))

    def _list_rest(self) -> Iterator[_Part]:
        for file in self._files.values():
            if not file.is_whole:
                parts = file.list_missing(FILL_BYTES) or [(0, 0)]  # the latter: it has still to be hashed
                yield from (_Part(file, begin, end, REST) for begin, end in parts)

    def _submit_rest(self) -> None:
        with self._changed:
            part = next(self._rest, None)
        if part is not None:
            self._submit(part)

    def _work(self) -> None:
        while not self._transfers.is_cancelled.is_set():
            _, _, part = self._tasks.get()
            try:
                self._copy(part)
                if part.priority == REST:
                    self._submit_rest()
            except Cancelled:
                return
            except Exception as e:
                self._fail(e)
                return

    def _copy(self, part: _Part) -> None:
        """Copy what is missing of a part, and check the file if it is whole then."""
        file, shown = part.file, self._source.show(part.file.file.name)
        num_copied = 1  # not 0: a lost connection is waited for, as it worked before

        def copy_rest() -> None:
            nonlocal num_copied
            begin = file.find_first_missing(part.begin, part.end)
            if begin >= part.end:
                return
            with self._source.open(file.file.name, begin, part.end) as body:
                position = first = body.start  # 0 if the service knows no ranges
                for chunk in body.chunks:
                    self._transfers.check_cancelled()
                    rest = memoryview(chunk)[: part.end - position]
                    file.write(position, rest)
                    position += len(rest)
                    num_copied += len(rest)
                    file.mark(first, position)
                    with self._changed:
                        self._changed.notify_all()
                    if position >= part.end:
                        break
            if position < part.end:
                raise TransferBroken(f"it ended after {position:,} of {file.size_bytes:,} bytes")

        self._transfers.try_again(copy_rest, shown=shown, get_position=lambda: num_copied)
        file.save(is_due=True)
        if file.has_all_blocks and not file.finish():
            raise ShardError(
                f"{shown} does not have the sha256 in its manifest, and was trained on; get another copy of the build, "
                "and start the run again with --restart"
            )

    def _fail(self, error: Exception) -> None:
        if isinstance(error, OSError):
            error = FolioError(f"{explain_os_error(error)}; FOLIO_CACHE chooses the folder of the cache")
        self._transfers.is_cancelled.set()
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
