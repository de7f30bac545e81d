"""A folder of an object store, or of another file system of fsspec, in which a build is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from preprocess.inputs.remote.addresses import get_scheme, show_url
from preprocess.inputs.remote.object_store import PACKAGES, ObjectStore, read_version
from preprocess.inputs.remote.transfer import Transfers
from preprocess.shards.files import open_regular_file
from preprocess.shards.manifest_file import ShardError
from preprocess.sharing.build_files import BuildFile
from preprocess.sharing.sources import join_url

CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 5 << 20  # sent at once, S3 takes no less; each transfer has a few of them in memory
MAX_BLOCKS = 9_000  # S3 takes 10,000 for an object
BLOCK_STEP_BYTES = 256 << 10  # Google's blocks are multiples of it


class ObjectFolder:
    """The folder at a URL of fsspec. Errors are those of a `Service`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self.shown = show_url(self._url)
        self._store = ObjectStore(get_scheme(url))
        self._has_folders = get_scheme(url) not in PACKAGES or get_scheme(url) in ("sftp", "ssh")

    def show(self, name: str) -> str:
        """Return a file and its folder for messages."""
        return f"{name} of {self.shown}"

    def list(self) -> dict[str, tuple[int, str]]:
        """Return the size and the version of all files in the folder, by their path in it."""
        with self._store.explain_errors(self._url):
            system, root = self._store.connect(self._url)
            system.invalidate_cache()
            start = f"{root.rstrip('/')}/"
            return {
                path.removeprefix(start): (info["size"], read_version(info))
                for path, info in system.find(root, detail=True).items()
                if info["type"] == "file" and path.startswith(start)
            }

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return the content of a file, at most its first `max_bytes`."""
        with self._store.explain_errors(join_url(self._url, name)):
            system, path = self._store.connect(join_url(self._url, name))
            with system.open(path, "rb", cache_type="none") as file:
                data: bytes = file.read(max_bytes)
            return data

    def write(self, name: str, data: bytes) -> None:
        """Write a small file as a whole."""
        with self._store.explain_errors(join_url(self._url, name)):
            system, path = self._connect(name)
            system.pipe_file(path, data)

    def delete(self, name: str) -> None:
        """Delete a file."""
        with self._store.explain_errors(join_url(self._url, name)):
            system, path = self._connect(name)
            system.rm_file(path)

    def upload(self, file: BuildFile, local: Path, transfers: Transfers) -> str:
        """Copy a file of a build to the folder, and return the version that it has there.

        Raises ShardError if the file is not what its manifest says. Then, and after an interruption,
        no object is made.
        """
        url, block_bytes = join_url(self._url, file.name), _choose_block_bytes(local.stat().st_size)
        with self._store.explain_errors(url):
            system, path = self._connect(file.name)
            out = system.open(path, "wb", block_size=block_bytes)
        try:
            for chunk in _read_checked(file, local):
                transfers.check_cancelled()
                with self._store.explain_errors(url):  # of the service only, not of the file
                    out.write(chunk)
                transfers.report(len(chunk))
        except BaseException:
            _discard(out)
            raise
        with self._store.explain_errors(url):
            out.close()
            system.invalidate_cache()
            return read_version(system.info(path))

    def _connect(self, name: str) -> tuple[Any, str]:
        """Return the file system, and the path of a file that is written."""
        system, path = self._store.connect(join_url(self._url, name))
        if self._has_folders:
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
        return system, path


def _choose_block_bytes(size_bytes: int) -> int:
    """Return how many bytes of a file of `size_bytes` are sent at once."""
    return max(BLOCK_BYTES, -(-size_bytes // (MAX_BLOCKS * BLOCK_STEP_BYTES)) * BLOCK_STEP_BYTES)


def _read_checked(file: BuildFile, local: Path) -> Iterator[bytes]:
    """Yield the content of a file of a build. Raises ShardError at its end if it is not what the manifest says."""
    digest = hashlib.sha256()
    with open_regular_file(local) as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            yield chunk
        size_bytes = source.tell()
    if file.size_bytes not in (None, size_bytes) or digest.hexdigest() != file.sha256:
        raise ShardError(
            f"{local} does not have the size and sha256 in its manifest; copy the build again or rebuild it"
        )


def _discard(out: Any) -> None:
    """Give up a file that was written in part. Closing it would make the object."""
    try:
        out.discard()
    finally:
        with suppress(AttributeError):  # a file in memory
            out.closed = True
