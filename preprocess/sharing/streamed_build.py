"""A build that is trained on while it arrives.

The folder looks like that of a build: the document ends, the loss masks, the tokenizer and the
statistics are copied first, and the files of the tokens and of the table of documents have their final
size and are filled during the run (arrivals.py). A read waits for the bytes that it needs. So every batch has
the same bytes as with the whole build, in the same order.

The folder is hidden and never becomes a build itself: when all of its files are whole, the next run
hashes them once more and moves them to the folder of the build (cached_build.py).
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from preprocess.errors import format_quantity
from preprocess.progress import Progress
from preprocess.shards.files import write_durable
from preprocess.shards.format import Build
from preprocess.shards.manifest import Manifest
from preprocess.shards.manifest_file import MANIFEST
from preprocess.sharing.arrivals import Arrivals
from preprocess.sharing.arriving_file import ArrivingFile, get_note_path
from preprocess.sharing.build_files import check_space, list_build_files
from preprocess.sharing.publish import lock_target, open_work
from preprocess.sharing.pull import copy_files
from preprocess.sharing.sources import Source

ARRIVING = (".bin", ".docs")  # training reads no .docs, which therefore come last


class StreamedBuild(Build):
    """A build in the cache whose tokens arrive while they are read."""

    is_streamed = True

    def __init__(self, folder: Path, arrivals: Arrivals, warn: Callable[[str], None]) -> None:
        self._arrivals, self._warn = arrivals, warn
        super().__init__(folder)

    def close(self) -> None:
        """Stop copying, and warn of files that could not be checked. Missing tokens then never arrive."""
        self._arrivals.close()
        if num_unchecked := self._arrivals.num_unchecked:
            self._warn(
                f"{format_quantity(num_unchecked, 'file')} of {self.name} did not arrive completely, so their sha256 "
                "could not be checked; the same command continues the copy"
            )

    def wait_for_tokens(self, split: str, shard: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
        entries, item_bytes = self.manifest.splits[split].shards, self.dtype.itemsize
        needed = []
        for number in np.unique(shard):
            rows = shard == number
            needed.append((entries[number].file, begin[rows] * item_bytes, end[rows] * item_bytes))
        self._arrivals.wait_for(needed)


OPENED: dict[Path, tuple[StreamedBuild, ExitStack]] = {}  # with their locks, by the folder of the whole build


def open_streamed_build(
    source: Source, manifest_data: bytes, manifest: Manifest, target: Path, progress: Progress
) -> StreamedBuild | None:
    """Return a build whose tokens arrive when they are read, or None if all of them have arrived before.

    `target`: the folder of the whole build in the cache. The build is locked until this process ends.
    Raises FolioError if another process copies it, and as `pull` does.
    """
    if target in OPENED:
        return OPENED[target][0]
    with ExitStack() as stack:
        stack.enter_context(lock_target(target))
        folder = _get_folder(target)
        folder.mkdir(exist_ok=True)
        files = list_build_files(manifest, source.show(MANIFEST))
        arriving = [
            ArrivingFile(folder, file)
            for file in sorted(files, key=lambda file: file.name.endswith(ARRIVING[1]))
            if file.name.endswith(ARRIVING)
        ]
        if all(file.is_whole for file in arriving):
            return None
        others = [file for file in files if not file.name.endswith(ARRIVING)]
        check_space(folder, sum(file.num_missing_bytes for file in arriving))
        copy_files(source, others, folder, progress)
        write_durable(folder / MANIFEST, manifest_data)
        arrivals = Arrivals(source, arriving)
        build = StreamedBuild(folder, arrivals, progress.warn)
        arrivals.start()
        OPENED[target] = build, stack.pop_all()
    return build


@atexit.register
def close_streams() -> None:
    """Close the builds that are read while they arrive, and unlock them."""
    while OPENED:
        _, (build, lock) = OPENED.popitem()
        with lock:
            build.close()


def take_over_files(target: Path, build_id: str) -> None:
    """Move the whole files of a streamed build to the work folder of `pull`, and delete the rest."""
    folder = _get_folder(target)
    if not folder.is_dir():
        return
    with lock_target(target), open_work(target, build_id) as work:
        for path in folder.iterdir():
            if path.suffix in (".bin", ".docs", ".ends", ".mask") and not get_note_path(path).exists():
                path.replace(work / path.name)
        shutil.rmtree(folder)


def _get_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.stream")
