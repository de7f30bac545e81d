"""Read a build from an archive that `pack` has written, or that somebody else has made.

An archive is untrusted. Nothing in it is used as a path: an entry is only accepted if it is a plain
file whose name is one that the manifest, the first entry, asks for. Its size must be the one that
follows from the manifest, and its content must have the hash. Everything is written to a hidden
folder beside the target, which is renamed when it is whole and deleted after an error.

A small archive can decompress to any number of bytes. So an archive that is longer than its
manifest says is refused, and one whose decompression needs more than MAX_WINDOW_LOG is too.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, first_line, one_line, shorten
from preprocess.inputs.compressions import import_zstd
from preprocess.inputs.tar_entries import StrictTarFile, iter_entries
from preprocess.progress import Bar, Progress
from preprocess.shards.files import open_regular_file
from preprocess.shards.format import BUILD_NAME
from preprocess.shards.manifest_file import MANIFEST, MAX_FILE_BYTES, ShardError, check_manifest
from preprocess.sharing.build_files import BuildFile, check_space, count_bytes, list_build_files
from preprocess.sharing.checked_file import CheckedFile
from preprocess.sharing.publish import choose_target, has_build, lock_target, open_work, publish

MAX_WINDOW_LOG = 27  # 128 MiB, as for the command zstd without --long
CHUNK_BYTES = 1 << 20
ENTRY_BYTES = 16 << 10  # headers and padding of an entry, and padding of the archive
ADVICE = "get another copy of the archive"


class _LimitedStream:
    """A stream of which at most `max_bytes` can be read. The limit can be changed while it is read."""

    def __init__(self, stream: Any, shown: str, max_bytes: int) -> None:
        self._stream, self.shown = stream, shown
        self.max_bytes, self._num_bytes = max_bytes, 0

    def read(self, num_bytes: int) -> bytes:
        data: bytes = self._stream.read(num_bytes)
        self._num_bytes += len(data)
        if self._num_bytes > self.max_bytes:
            raise ShardError(f"{self.shown} decompresses to more bytes than its manifest declares; {ADVICE}")
        return data


def unpack(archive: Path, name: str | None, *, replace: bool, progress: Progress) -> tuple[Path, bool]:
    """Unpack an archive, and return the folder of the build and whether this was necessary.

    `name`: of the build here, by default that in its manifest. Raises MisuseError if the folder
    contains another build and `replace` is false, and FolioError if the archive is damaged or holds
    anything that its manifest does not name.
    """
    shown = one_line(str(archive))
    with _open_archive(archive, shown) as (tar, stream):
        entries = iter_entries(tar)
        prefix, data = _read_manifest(tar, entries, shown)
        manifest = check_manifest(data, f"{MANIFEST} of {shown}", advice=ADVICE)
        target = choose_target(name, manifest)
        files = list_build_files(manifest, f"{MANIFEST} of {shown}")
        stream.max_bytes = len(data) + count_bytes(files) + (len(files) + 1) * ENTRY_BYTES + 2 * CHUNK_BYTES
        with lock_target(target):
            if has_build(target, manifest.build_id, replace=replace):
                return target, False
            check_space(target.parent, count_bytes(files))
            with (
                _open_empty_work(target, manifest.build_id) as work,
                progress.bar("unpack", total=count_bytes(files), unit="B") as bar,
            ):
                _Unpacking(tar, stream, work, bar).run(entries, {f"{prefix}/{file.name}": file for file in files})
                publish(work, data, target)
    return target, True


@contextmanager
def _open_archive(archive: Path, shown: str) -> Iterator[tuple[StrictTarFile, _LimitedStream]]:
    """Open an archive. Everything that the libraries raise for a damaged one is raised as ShardError."""
    zstd = import_zstd()
    options = {zstd.DecompressionParameter.window_log_max: MAX_WINDOW_LOG}
    try:
        with open_regular_file(archive) as raw, zstd.ZstdFile(raw, "rb", options=options) as compressed:
            stream = _LimitedStream(compressed, shown, MAX_FILE_BYTES + 2 * CHUNK_BYTES)
            file: Any = stream
            with StrictTarFile.open(fileobj=file, mode="r|", bufsize=CHUNK_BYTES) as tar:
                yield tar, stream
    except FileNotFoundError as e:
        if e.filename != str(archive):
            raise
        raise FolioError(f"{shown} does not exist; name a file that `preprocess pack` has written") from e
    except (tarfile.TarError, zstd.ZstdError, EOFError, ValueError) as e:
        raise ShardError(f"{shown} is damaged or not a .tar.zst archive ({first_line(e)}); {ADVICE}") from e


@contextmanager
def _open_empty_work(target: Path, build_id: str) -> Iterator[Path]:
    """Yield an empty hidden folder, which is deleted after an exception."""
    with open_work(target, build_id) as work:
        try:
            for left in work.iterdir():  # by a process that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield work
        except BaseException:
            shutil.rmtree(work)
            raise


def _read_manifest(tar: StrictTarFile, entries: Iterator[tarfile.TarInfo], shown: str) -> tuple[str, bytes]:
    """Return the name of the folder in the archive and the content of the manifest, the first entry."""
    entry = next(entries, None)
    folder, _, name = entry.name.rpartition("/") if entry else ("", "", "")
    if entry is None or name != MANIFEST or not BUILD_NAME.fullmatch(folder) or not _is_plain_file(entry):
        found = "is empty" if entry is None else f"begins with {shorten(entry.name)!r}"
        raise ShardError(
            f"{shown} {found}, expected NAME/{MANIFEST}; name an archive that `preprocess pack` has written"
        )
    if entry.size > MAX_FILE_BYTES:
        raise ShardError(
            f"{MANIFEST} of {shown} has {entry.size:,} bytes, expected at most {MAX_FILE_BYTES:,}; {ADVICE}"
        )
    return folder, _open_entry(tar, entry).read()


def _is_plain_file(entry: tarfile.TarInfo) -> bool:
    """Return whether an entry is a file, and not a link, a device, a folder or a sparse file."""
    return entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and entry.sparse is None


def _open_entry(tar: StrictTarFile, entry: tarfile.TarInfo) -> Any:
    opened = tar.extractfile(entry)
    assert opened is not None  # it is a plain file
    return opened


class _Unpacking:
    """Writes the files of an archive to a folder."""

    def __init__(self, tar: StrictTarFile, stream: _LimitedStream, folder: Path, bar: Bar) -> None:
        self._tar, self._stream, self._folder, self._bar = tar, stream, folder, bar
        self._shown = stream.shown

    def run(self, entries: Iterator[tarfile.TarInfo], missing: dict[str, BuildFile]) -> None:
        """Write the files `missing`, by their names in the archive. All of them, and no others, must be there."""
        for entry in entries:
            what = f"{self._shown} holds {shorten(entry.name)!r}"
            if not _is_plain_file(entry):
                raise ShardError(f"{what}, which is not a plain file; {ADVICE}")
            file = missing.pop(entry.name, None)
            if file is None:
                raise ShardError(f"{what}, which its manifest does not name, or twice; {ADVICE}")
            if entry.size > file.max_bytes or file.size_bytes not in (None, entry.size):
                raise ShardError(f"{what} with {entry.size:,} bytes, its manifest says {file.max_bytes:,}; {ADVICE}")
            if file.size_bytes is None:
                check_space(self._folder, entry.size)
                self._stream.max_bytes += entry.size
            self._write(entry, file)
        if missing:
            raise ShardError(f"{self._shown} lacks {shorten(next(iter(missing)))!r}; {ADVICE}")

    def _write(self, entry: tarfile.TarInfo, file: BuildFile) -> None:
        source = _open_entry(self._tar, entry)
        with CheckedFile(self._folder, file, f"{entry.name} of {self._shown}") as out:
            while chunk := source.read(CHUNK_BYTES):
                out.write(chunk)
                if file.size_bytes is not None:
                    self._bar.update(len(chunk))
            out.finish()
