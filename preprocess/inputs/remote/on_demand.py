"""Copy remote files when they are needed, for streams, or only a few of them, for estimates.

The problem: a stream of a large dataset should begin within seconds, and should not fill the disk.

The idea: when a stream is opened, only the names, sizes and versions of the files are known. A file
is copied when the stream reaches it, and the next file is copied while it is read (of small files,
the next ones). Old copies are deleted (stream_copies.py); if one is needed again, for example in the
next epoch, it is copied again.

The cost: the format of a file is what its name says, until it is reached. Archives and files whose
names do not say their format are copied when the stream is opened.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.errors import FolioError, format_quantity
from preprocess.inputs.describe import describe_input_files
from preprocess.inputs.detect import ARCHIVE_SUFFIXES, detect_format_by_name, strip_compression_suffix
from preprocess.inputs.disk_file import NO_SHA256, NOT_COPIED, DiskFile
from preprocess.inputs.input_files import InputFile, Origin
from preprocess.inputs.remote.cache import count_missing_bytes, get_cached_path, get_remote_folder
from preprocess.inputs.remote.fetch import NUM_TRANSFERS, ListedFile, check_space, explain_cache_errors, find_copy
from preprocess.inputs.remote.remote_file import RemoteFile
from preprocess.inputs.remote.stream_copies import VARIABLE, StreamCopies, note_opening
from preprocess.inputs.remote.transfer import Transfers
from preprocess.recipes.schema import Recipe
from preprocess.shards.permutation import keyed_hash

# The files that an estimate copies: at least one, and no further one after this.
MAX_SAMPLE_BYTES, MAX_SAMPLE_FILES = 64 << 20, 256
# The files that are copied ahead: at least one, and no further one after this.
MAX_BYTES_AHEAD, MAX_FILES_AHEAD = 64 << 20, 64
LOG_AFTER_S = 5.0
MAX_TRIES = 3


@dataclass(frozen=True)
class FilesOnDemand:
    """The remote files of a corpus that are copied when a stream reaches them, by the number of the input file."""

    listed: Mapping[int, ListedFile]
    recipe: Recipe  # in which the format may be "auto"


def choose_sample(listed: list[ListedFile], seed: int) -> list[ListedFile]:
    """Return some of the files, chosen by the seed. They are all of them if these are small or of unknown size."""
    if any(item.file.size_bytes is None for item in listed):
        return listed
    chosen: list[ListedFile] = []
    num_bytes = 0
    order = np.argsort(keyed_hash(seed, np.arange(len(listed), dtype=np.uint64)), kind="stable")
    for index in order.tolist():
        if num_bytes >= MAX_SAMPLE_BYTES or len(chosen) >= MAX_SAMPLE_FILES:
            break
        chosen.append(listed[index])
        num_bytes += listed[index].file.size_bytes or 0
    return chosen


def make_uncopied(file: RemoteFile, recipe: Recipe) -> InputFile | None:
    """Return a remote file before it is copied, None if its content must be known first."""
    is_archive = strip_compression_suffix(file.name).endswith(ARCHIVE_SUFFIXES)
    format_ = detect_format_by_name(file.name) if recipe.format == "auto" else recipe.format
    if is_archive or format_ is None or file.size_bytes is None or not file.version:
        return None
    path = str(find_copy(file) or get_cached_path(file))
    disk = DiskFile(path, file.size_bytes, NOT_COPIED, NOT_COPIED, NO_SHA256)
    origin = Origin(file.origin, file.version)
    return InputFile(disk, format_, file.size_bytes, NO_SHA256, name=file.name, origin=origin)


class CopyingOpener:
    """Opens the input files of a stream: copies the remote ones, and ahead of time the next ones."""

    def __init__(self, files: Sequence[InputFile], on_demand: FilesOnDemand, log: Callable[[str], None]) -> None:
        """`files`: those that the stream reads, in their order. Raises MisuseError for an invalid limit of the cache.

        `log` is called with a line if a file has to be waited for.
        """
        self._on_demand, self._log = on_demand, log
        self._order = [file for file in files if file.number in on_demand.listed]
        self._indices = {file.number: index for index, file in enumerate(self._order)}
        self._opened: dict[int, InputFile] = {}
        self._copier = _Copier(on_demand)
        self._pid = os.getpid()
        weakref.finalize(self, self._copier.transfers.is_cancelled.set)

    def open(self, file: InputFile) -> InputFile:
        """Return `file` as it is on the disk, after copying it if necessary.

        Raises FolioError if it cannot be obtained, or is not what its name says.
        """
        index = self._indices.get(file.number)
        if index is None:
            return file
        if self._pid != os.getpid():  # threads do not survive a fork
            self._copier, self._pid = _Copier(self._on_demand), os.getpid()
            weakref.finalize(self, self._copier.transfers.is_cancelled.set)
        opened = self._opened.get(file.number)
        if opened is None or not opened.disk.is_current():
            opened = self._opened[file.number] = self._copy_and_describe(self._order[index])
        note_opening(opened.disk.path)
        following = self._list_following(index)
        self._copier.in_use = frozenset((opened.disk.path, *(item.disk.path for item in following)))
        for item in following:
            ahead = self._opened.get(item.number)
            if ahead is None or not ahead.disk.is_current():
                self._copier.start(item.number)
        return opened

    def _copy_and_describe(self, file: InputFile) -> InputFile:
        for _ in range(MAX_TRIES):
            try:
                return self._describe(file, self._wait(file))
            except FileNotFoundError:  # another stream deleted the copy after it was made ahead of time
                continue
        raise FolioError(
            f"the copy of {file.name} was deleted {MAX_TRIES} times before it could be read; set {VARIABLE} to more "
            "than the size of the files that all streams read at the same time"
        )

    def was_deleted(self, file: InputFile) -> bool:
        """Return whether `file` is a copy that was deleted, or deleted and made again, after it was opened."""
        return file.number in self._indices and file.disk.is_copied and not file.disk.is_current()

    def _list_following(self, index: int) -> list[InputFile]:
        """Return the files to copy ahead of time while the file `index` is read."""
        files: list[InputFile] = []
        num_bytes = 0
        for file in self._order[index + 1 : index + 1 + MAX_FILES_AHEAD]:
            files.append(file)
            num_bytes += file.size_bytes
            if num_bytes >= MAX_BYTES_AHEAD:
                break
        return files

    def _wait(self, file: InputFile) -> Path:
        if self._copier.has_failed(file.number):  # ahead of time
            self._copier.forget(file.number)
        future = self._copier.start(file.number)
        try:
            return future.result(LOG_AFTER_S)
        except TimeoutError:
            if future.done():
                raise
            url = file.origin.url if file.origin else file.name
            self._log(f"waiting for the copy of {url} ({format_quantity(file.size_bytes, 'byte')})")
            return future.result()
        finally:
            self._copier.forget(file.number)

    def _describe(self, file: InputFile, path: Path) -> InputFile:
        recipe = self._on_demand.recipe
        found = describe_input_files([(file.name, str(path))], recipe, {file.name: NO_SHA256}, num_threads=1).files
        if len(found) != 1 or found[0].archive or found[0].format != file.format:
            kind = "an archive" if len(found) != 1 or found[0].archive else f"a file of the format {found[0].format}"
            raise FolioError(
                f"{path} is {kind}, but its name is that of a {file.format} file, and a stream reads it as its name "
                "says; set format, rename it, or build the corpus"
            )
        return file._replace(disk=found[0].disk, compression=found[0].compression, encoding=found[0].encoding,
            has_mac_line_ends=found[0].has_mac_line_ends,
        )  # fmt: skip


class _Copier:
    """The transfers of one stream in one process."""

    def __init__(self, on_demand: FilesOnDemand) -> None:
        self.transfers = Transfers(threading.Event(), lambda num_bytes: None)
        self.in_use: frozenset[str] = frozenset()  # paths that are not deleted
        self._listed = on_demand.listed
        self._slots = threading.Semaphore(NUM_TRANSFERS)
        self._copies = StreamCopies()
        self._futures: dict[int, Future[Path]] = {}

    def start(self, number: int) -> Future[Path]:
        """Return the future path of the copy of an input file, which a thread makes if necessary."""
        if number not in self._futures:
            future = self._futures[number] = Future[Path]()
            # A daemon: the end of the program does not wait for it, and the next stream continues the copy.
            threading.Thread(target=self._run, args=(future, self._listed[number]), daemon=True).start()
        return self._futures[number]

    def has_failed(self, number: int) -> bool:
        """Return whether the copy of an input file ended with an error."""
        future = self._futures.get(number)
        return future is not None and future.done() and future.exception() is not None

    def forget(self, number: int) -> None:
        """Forget a copy, so that the next `start` looks for it again."""
        self._futures.pop(number, None)

    def _run(self, future: Future[Path], item: ListedFile) -> None:
        try:
            with self._slots, explain_cache_errors():
                future.set_result(self._copy(item))
        except BaseException as e:
            future.set_exception(e)

    def _copy(self, item: ListedFile) -> Path:
        if (copy := find_copy(item.file)) is not None:
            return copy
        if item.service is None:
            raise FolioError(f"the copy of {item.file.origin} was deleted; open the stream again")
        self._copies.prepare(item.file, self.in_use)
        check_space(count_missing_bytes(item.file), get_remote_folder())
        return self.transfers.fetch(item.file, item.service)
