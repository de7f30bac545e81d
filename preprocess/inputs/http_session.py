"""Sessions of requests with limits that requests and http.client lack.

The problem: requests reads the body of a redirect into memory, decompressed, however long it is.
http.client skips any number of answers "100 Continue", and a timeout holds for each byte of a head
that arrives slowly. So a server can fill the memory or keep a command waiting for ever.

The idea: the body of a redirect is not read, and the head of an answer, with all interim answers
before it, has a maximum size and a maximum time.
"""

from __future__ import annotations

import http.client
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

MAX_HEAD_BYTES = 1 << 20
MAX_HEAD_S = 60.0


class HeadTooLong(http.client.HTTPException):
    """The head of an answer takes too many bytes or too long."""


def make_session(max_retries: Any = 0) -> requests.Session:
    """Return a session. `max_retries`: a number, or a Retry of urllib3."""
    session = requests.Session()
    session.hooks["response"].append(_close_redirect)
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(max_retries=max_retries))
    return session


def _close_redirect(response: requests.Response, **_: Any) -> None:
    """Close the connection of a redirect, before requests reads its body."""
    if response.is_redirect:
        response.raw.close()


class _Head:
    """The lines of the head of an answer, from a buffered reader."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._num_left = MAX_HEAD_BYTES
        self._end = time.monotonic() + MAX_HEAD_S

    def readline(self, max_bytes: int) -> bytes:
        """Return the next line, or its first `max_bytes`. Raises HeadTooLong."""
        line = b""
        while not line.endswith(b"\n") and len(line) < max_bytes:
            if not self._num_left or time.monotonic() > self._end:
                raise HeadTooLong("the head of an answer is too long")
            available = self._reader.peek()  # waits for one byte
            if not available:
                break
            num_bytes = available.find(b"\n") + 1 or len(available)
            part = self._reader.read(min(num_bytes, max_bytes - len(line), self._num_left))
            line += part
            self._num_left -= len(part)
        return line

    def close(self) -> None:
        self._reader.close()


class _Answer(http.client.HTTPResponse):
    def begin(self) -> None:
        reader: Any = self.fp
        self.fp = _Head(reader)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:  # an answer without a body is closed
                self.fp = reader


class _Connection(HTTPConnection):
    response_class = _Answer


class _SecureConnection(HTTPSConnection):
    response_class = _Answer


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        _limit(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        _limit(manager)
        return manager


def _limit(manager: Any) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
