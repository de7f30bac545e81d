"""One file of a service, and what can happen while it is listed and read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from preprocess.errors import FolioError


class Unreachable(FolioError):
    """The service cannot be reached. The cache may have what it was asked for."""


class AccessDenied(FolioError):
    """The service does not send the file without other credentials."""


class TransferBroken(Exception):
    """A request failed in a way that may be over soon. The message is the reason, without credentials.

    `wait_s`: how long the service asks to wait, if it does.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a service in one version."""

    name: str  # `<scheme>/<host or bucket>/<path>`: unique, and the order in which files are read
    key: str  # of its copy in the cache: identifies address and version
    size_bytes: int | None  # None if the service does not say
    version: str  # revision, ETag, generation or time of the last change; "" if the service gives none
    origin: str  # its address for the manifest, without credentials
    digest: str = ""  # "sha256:…" or "git:…" if the service gives it
    url: str = field(default="", repr=False)  # may contain credentials; "" if the file is known from the cache only

    @property
    def can_continue(self) -> bool:
        """Whether the rest of a file that was read in part surely belongs to it."""
        return bool(self.version or self.digest)


def make_key(address: str, version: str) -> str:
    """Return the key of a file in the cache."""
    return hashlib.sha256(f"{address}\n{version}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Body:
    """The content of a file from byte `start`, which is 0 if the service cannot begin elsewhere.

    A chunk can be in memory that the next one uses again.
    """

    start: int
    chunks: Iterator[bytes | memoryview]


class Service(Protocol):
    """Where remote files are.

    The methods raise TransferBroken if it makes sense to try again, Unreachable if a connection cannot
    be made, and FolioError for everything that trying again does not change.
    """

    def list_files(self, url: str, recipe_format: str) -> tuple[list[RemoteFile], list[str]]:
        """Return the files that `url` means, at least one, and the names of those of a folder that are skipped.

        `recipe_format`: which files of a folder are read.
        """

    def open(self, file: RemoteFile, start: int, stop: int | None = None) -> AbstractContextManager[Body]:
        """Open a file at byte `start`. Raises InputChanged if it is not the listed version any more.

        If only the bytes before `stop` are needed, the service is told so. It may still send more.
        """
