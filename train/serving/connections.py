"""Close the connections of slow clients, so that they cannot keep other clients out.

Without a time limit for headers, for the rest of a body that is answered already, and for reading the answer,
MAX_CONNECTIONS clients that send one byte per second can block the server. bodies.py limits the time for the
bodies of requests, and uvicorn closes idle connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from train.serving.bodies import SECONDS_TO_SEND

MAX_CONNECTIONS = 256  # requests of further ones get the status 503
MAX_OPEN_CONNECTIONS = 1024  # further ones are closed at once: each takes a file handle and up to 100 kB
SECONDS_TO_READ = 60.0  # until the buffer of an answer, of 64 KiB, must be mostly read


class Deadline:
    """A time at which a function is called, unless the deadline is stopped before."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, action: Callable[[], object]) -> None:
        """Call `action` after the seconds. A deadline that has been started does not change."""
        if self._handle is None:
            self._handle = loop.call_later(self._seconds, action)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class LimitedConnection(H11Protocol):
    """A connection of uvicorn's server that is closed if its client is too slow."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._send_deadline = Deadline(SECONDS_TO_SEND)  # runs while no request is being answered
        self._read_deadline = Deadline(SECONDS_TO_READ)  # runs while the buffer of the answer is full

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_OPEN_CONNECTIONS:
            transport.abort()
        self._limit_sending()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._limit_sending()

    def on_response_complete(self) -> None:
        self._send_deadline.stop()
        super().on_response_complete()  # may begin to answer the next request
        self._limit_sending()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_deadline.start(self.loop, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read_deadline.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._send_deadline.stop()
        self._read_deadline.stop()
        super().connection_lost(exc)

    def _limit_sending(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._send_deadline.stop()
        else:
            self._send_deadline.start(self.loop, self.transport.abort)
