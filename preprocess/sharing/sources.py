"""Where a build is pulled from: a folder on this machine, a web server, an object store, or the hub.

Each source opens a file of the build at any byte, so that an interrupted copy continues. The
services, with their credentials, errors and ranges, are those that read remote inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.expand_glob import is_glob
from preprocess.inputs.remote.addresses import find_hub_address, get_scheme, is_remote, resolve_file_url, show_url
from preprocess.inputs.remote.fetch import make_service
from preprocess.inputs.remote.hub import HubService
from preprocess.inputs.remote.remote_file import Body, RemoteFile, Service
from preprocess.shards.files import open_regular_file, read_blocks

ADVICE = "check the address, which is that of the folder with manifest.json"


class Source(Protocol):
    """A folder with the files of a build."""

    def show(self, name: str) -> str:
        """Return a file and its folder for messages, without credentials."""

    def open(self, name: str, start: int, stop: int | None = None) -> AbstractContextManager[Body]:
        """Open a file at byte `start`, or at 0 if the service cannot begin elsewhere.

        `name` is relative to the folder. The rest is as for `Service.open`.
        """


def open_source(address: str) -> Source:
    """Return the source with a path or a URL. Raises MisuseError if it has an unknown scheme."""
    address = find_hub_address(address) or address
    if not is_remote(address):
        return LocalFolder(Path(resolve_file_url(address)))
    service = make_service(address)
    return HubFolder(address, service) if isinstance(service, HubService) else RemoteFolder(address, service)


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def show(self, name: str) -> str:
        return str(self._folder / name)

    @contextmanager
    def open(self, name: str, start: int, stop: int | None = None) -> Iterator[Body]:
        try:
            with open_regular_file(self._folder / name) as file:
                file.seek(start)
                yield Body(start, read_blocks(file))
        except (FileNotFoundError, NotADirectoryError) as e:
            raise FolioError(f"{self.show(name)} does not exist; {ADVICE}") from e


class RemoteFolder:
    """A folder of a web server or an object store."""

    def __init__(self, url: str, service: Service) -> None:
        if is_glob(url.partition("?")[0]):
            raise MisuseError(f"{show_url(url)} may mean several folders; name one, without * and [")
        self._url, self._service = url, service
        self._files: dict[str, RemoteFile] = {}  # whose size and version are known

    def show(self, name: str) -> str:
        return f"{name} of {show_url(self._url)}"

    @contextmanager
    def open(self, name: str, start: int, stop: int | None = None) -> Iterator[Body]:
        if name not in self._files:
            [self._files[name]], _ = self._service.list_files(join_url(self._url, name), "auto")
        with self._service.open(self._files[name], start, stop) as body:
            yield body


class HubFolder:
    """A folder of a dataset of the Hugging Face hub, at the commit that its revision is when it is first read."""

    def __init__(self, url: str, service: HubService) -> None:
        self._url, self._service = url, service
        self._files = service.list_folder(url)

    def show(self, name: str) -> str:
        return f"{name} of {show_url(self._url)}"

    @contextmanager
    def open(self, name: str, start: int, stop: int | None = None) -> Iterator[Body]:
        if name not in self._files:
            raise FolioError(f"{self.show(name)} does not exist; {ADVICE}")
        with self._service.open(self._files[name], start, stop) as body:
            yield body


def join_url(url: str, name: str) -> str:
    """Return the URL of a file in the folder `url`. A query, such as a token, stays at the end."""
    if get_scheme(url) not in ("https", "http"):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))
