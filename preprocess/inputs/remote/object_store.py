"""Files of object stores and of every other protocol of fsspec: s3://, gs://, az://, sftp://, …

The libraries read credentials from the environment and their own configuration files. A public
bucket is read without credentials if none are set. A file is compared with the listed version
before and after it is read, and S3 itself checks the ETag of every range.
"""

from __future__ import annotations

import datetime
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preprocess.errors import FolioError, MisuseError, first_line, shorten
from preprocess.inputs.disk_file import InputChanged
from preprocess.inputs.expand_glob import is_glob
from preprocess.inputs.remote.addresses import show_url
from preprocess.inputs.remote.folder_selection import select_data
from preprocess.inputs.remote.remote_file import Body, RemoteFile, TransferBroken, Unreachable, make_key

CHUNK_BYTES = 8 << 20
# What services call the version of a file, the best first.
VERSION_KEYS = ("ETag", "etag", "generation", "VersionId", "md5Hash", "LastModified", "mtime", "created")
PACKAGES = {
    "s3": "folio-lm[s3]", "s3a": "folio-lm[s3]", "gs": "folio-lm[gs]", "gcs": "folio-lm[gs]",
    "az": "adlfs", "abfs": "adlfs", "sftp": "paramiko", "ssh": "paramiko",
}  # fmt: skip
# Names of errors, because the libraries of each service have their own.
BREAKS = {"OSError", "HTTPClientError", "ClientError", "ConnectionError", "TimeoutError", "IncompleteRead"}
NO_CONNECTION = {
    "EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ConnectionRefusedError", "gaierror",
}  # fmt: skip
REJECTIONS = (errno.EINVAL, errno.EPERM, errno.ENAMETOOLONG, errno.EMSGSIZE)  # as s3fs translates those of S3
CREDENTIALS = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}


class ObjectStore:
    """The service behind the scheme of a URL."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._options: dict[str, Any] = {}  # for the file system of fsspec

    def list_files(self, url: str, recipe_format: str) -> tuple[list[RemoteFile], list[str]]:
        """Return the file, the files of the folder, or the matches of the glob that `url` means, and skipped ones."""
        with self.explain_errors(url):
            try:
                found, skipped = self._list(url, recipe_format)
            except Exception as e:
                if type(e).__name__ != "NoCredentialsError":
                    raise
                self._options = {"anon": True}  # a public bucket
                found, skipped = self._list(url, recipe_format)
        if not found:
            raise FolioError(f"{show_url(url)} matches no file of a known format; check the address")
        return [self._make_file(path, info) for path, info in sorted(found.items())], skipped

    def _list(self, url: str, recipe_format: str) -> tuple[dict[str, Any], list[str]]:
        system, path = self.connect(url)
        skipped: list[str] = []
        if is_glob(path) and not _has_object(system, path):
            found = system.glob(path, detail=True)
        else:
            info = system.info(path)
            if info["type"] == "file":
                return {path: info}, []
            found = {name: info for name, info in system.find(path, detail=True).items() if info["type"] == "file"}
            prefix_length = len(path.rstrip("/")) + 1
            names = {name[prefix_length:]: name for name in found}
            data, skipped = select_data(names, recipe_format)
            found = {names[name]: found[names[name]] for name in data}
        return {name: info for name, info in found.items() if info["type"] == "file"}, skipped

    def connect(self, url: str) -> tuple[Any, str]:
        """Return the file system of fsspec, and the path of the URL in it."""
        import fsspec

        if self._scheme not in fsspec.available_protocols():
            raise MisuseError(f"{show_url(url)} has an unknown scheme; expected https, hf, s3, gs or another of fsspec")
        try:
            system, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **self._options)
        except ImportError as e:
            package = PACKAGES.get(self._scheme)
            advice = f"install it with pip install '{package}'" if package else first_line(e)
            raise MisuseError(f"{self._scheme}:// needs a library; {advice}") from e
        return system, path

    def _make_file(self, path: str, info: dict[str, Any]) -> RemoteFile:
        version = read_version(info)
        origin = f"{self._scheme}://{path}"
        return RemoteFile(
            name=f"{self._scheme}/{path.lstrip('/')}", key=make_key(origin, version), size_bytes=info.get("size"),
            version=version, origin=origin, url=origin,
        )  # fmt: skip

    @contextmanager
    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> Iterator[Body]:
        """Open a file at byte `start`."""
        with self.explain_errors(file.url):
            system, path = self.connect(file.url)
            self._check_version(system, path, file)
            # No cache of fsspec: blocks are read once, in their order.
            chunk_bytes = CHUNK_BYTES if stop is None else min(stop - start, CHUNK_BYTES)
            stream = system.open(path, "rb", block_size=chunk_bytes, cache_type="none")
        with stream:
            if start:
                stream.seek(start)
            yield Body(start, self._read_chunks(stream, file, chunk_bytes))
        with self.explain_errors(file.url):
            self._check_version(system, path, file)

    def _read_chunks(self, stream: Any, file: RemoteFile, chunk_bytes: int) -> Iterator[bytes]:
        while True:
            with self.explain_errors(file.url):  # of the service only, not of what is done with the chunks
                chunk = stream.read(chunk_bytes)
            if not chunk:
                return
            yield chunk

    def _check_version(self, system: Any, path: str, file: RemoteFile) -> None:
        system.invalidate_cache()
        if read_version(system.info(path)) != file.version:
            raise InputChanged(f"{show_url(file.origin)} changed while it was downloaded")

    @contextmanager
    def explain_errors(self, url: str) -> Iterator[None]:
        """Raise the errors of the libraries as those of a service. Their messages may contain addresses and keys."""
        shown = show_url(url)
        try:
            yield
        except (FolioError, TransferBroken):
            raise
        except FileNotFoundError as e:
            raise FolioError(f"{shown} does not exist; check the bucket and the path") from e
        except PermissionError as e:
            needed = CREDENTIALS.get(self._scheme, "its credentials")
            raise FolioError(f"{shown} may not be accessed without other credentials; set {needed}") from e
        except Exception as e:
            names = {cls.__name__ for cls in type(e).__mro__}
            if names & NO_CONNECTION:
                raise Unreachable(f"{shown}: no connection; go online, or set PREPROCESS_MIRROR") from e
            if "FileExpired" in names:
                raise InputChanged(f"{shown} changed while it was downloaded") from e
            is_rejected = isinstance(e, OSError) and e.errno in REJECTIONS
            if names & BREAKS and not is_rejected:
                raise TransferBroken(f"{shown}: {type(e).__name__}") from e
            raise FolioError(
                f"{shown}: the request is rejected ({type(e).__name__}); check address, region and credentials"
            ) from e


def _has_object(system: Any, path: str) -> bool:
    """Return whether there is an object whose name is a glob, such as `a[1].txt`."""
    try:
        return bool(system.info(path)["type"] == "file")
    except FileNotFoundError:
        return False


def read_version(info: dict[str, Any]) -> str:
    """Return the version of a file that a file system of fsspec describes, "" if the service has none."""
    value = next((info[key] for key in VERSION_KEYS if info.get(key)), "")
    # Listings and single files may give a time in different types.
    return shorten(str(value.timestamp() if isinstance(value, datetime.datetime) else value))
