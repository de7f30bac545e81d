"""Write a build as one file, NAME.tar.zst.

The entries are NAME/manifest.json and then the files in the order in which the manifest names them,
so that `unpack` can check each of them while it arrives. They have no times and no owners: equal
builds give equal archives, with the same version of the zstd library. Each file is hashed while it
is read, so that a damaged build is not handed on.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from preprocess.errors import MisuseError, shorten
from preprocess.inputs.compressions import import_zstd
from preprocess.progress import Progress
from preprocess.shards.files import (
    check_output_file,
    check_version,
    open_atomic,
    open_regular_file,
    read_small_file,
    read_version,
)
from preprocess.shards.format import BUILD_NAME, Build
from preprocess.shards.manifest_file import MANIFEST, MAX_FILE_BYTES, ShardError
from preprocess.sharing.build_files import BuildFile, count_bytes, list_build_files

LEVEL = 3
MAX_THREADS = 4  # more than one changes no byte


def pack(build: Build, output: Path, *, replace: bool, progress: Progress) -> None:
    """Write a build to the archive `output`.

    Raises MisuseError if `output` exists and `replace` is false, or is not a file, and ShardError if
    the build is damaged.
    """
    check_output_file(output, replace=replace)
    if not BUILD_NAME.fullmatch(build.name):
        raise MisuseError(f"the build is named {shorten(build.name)!r}, which cannot be the name of a folder")
    version = read_version(output)
    files = list_build_files(build.manifest, str(build.folder / MANIFEST))
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_atomic(output) as raw,
        build.reading(),
        progress.bar("pack", total=count_bytes(files), unit="B") as bar,
        _open_zstd(raw) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        manifest = read_small_file(build.folder / MANIFEST, MAX_FILE_BYTES)
        tar.addfile(_make_entry(build.name, MANIFEST, len(manifest)), io.BytesIO(manifest))
        for file in files:
            _add(tar, build, file, bar.update if file.size_bytes is not None else lambda num_bytes: None)
        check_version(output, version)  # another command may have written it meanwhile


def _open_zstd(raw: IO[bytes]) -> Any:
    zstd = import_zstd()
    options = {zstd.CompressionParameter.compression_level: LEVEL, zstd.CompressionParameter.checksum_flag: True}
    _, max_threads = zstd.CompressionParameter.nb_workers.bounds()
    if max_threads:  # otherwise this library was made without threads
        options[zstd.CompressionParameter.nb_workers] = min(os.cpu_count() or 1, MAX_THREADS)
    return zstd.ZstdFile(raw, "wb", options=options)


def _make_entry(folder: str, name: str, size_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(f"{folder}/{name}")
    entry.size, entry.mode, entry.type = size_bytes, 0o644, tarfile.REGTYPE
    return entry


class _HashedReader:
    """A file that is hashed while tarfile reads it."""

    def __init__(self, file: IO[bytes], report: Callable[[int], None]) -> None:
        self._file, self._report = file, report
        self.digest = hashlib.sha256()

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        self.digest.update(data)
        self._report(len(data))
        return data


def _add(tar: tarfile.TarFile, build: Build, file: BuildFile, report: Callable[[int], None]) -> None:
    with open_regular_file(build.folder / file.name) as opened:
        reader = _HashedReader(opened, report)
        size_bytes = os.fstat(opened.fileno()).st_size
        tar.copybufsize = 1 << 20  # type: ignore[attr-defined]
        tar.addfile(_make_entry(build.name, file.name, size_bytes), reader)  # type: ignore[arg-type]
    if file.size_bytes not in (None, size_bytes) or reader.digest.hexdigest() != file.sha256:
        raise ShardError(
            f"{build.folder / file.name} does not have the size and sha256 in its manifest; copy the build again or "
            "rebuild it"
        )
