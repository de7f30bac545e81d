"""Connections of the server whose clients are too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from uvicorn import Config
from uvicorn.server import ServerState

from train.serving.bodies import SECONDS_TO_SEND
from train.serving.connections import MAX_OPEN_CONNECTIONS, SECONDS_TO_READ, LimitedConnection

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
IDLE_SECONDS = 5  # uvicorn's


class Timer:
    """A call that the loop is to make later."""

    def __init__(self, seconds: float, action: Callable[[], object]) -> None:
        self.seconds, self.action, self.is_cancelled = seconds, action, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock(asyncio.SelectorEventLoop):
    """A loop whose timers do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[Timer] = []

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        self.timers.append(Timer(delay, callback))
        return self.timers[-1]

    @property
    def waiting(self) -> list[float]:
        """The seconds of the timers that are running."""
        return sorted(timer.seconds for timer in self.timers if not timer.is_cancelled)


class Transport(asyncio.Transport):
    """A transport that only records whether it was aborted."""

    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_aborted

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


def connect(clock: Clock, state: ServerState | None = None) -> tuple[LimitedConnection, Transport]:
    config = Config(app=answer, log_config=None, lifespan="off", ws="none")
    connection = LimitedConnection(config=config, server_state=state or ServerState(), app_state={}, _loop=clock)
    transport = Transport()
    connection.connection_made(transport)
    return connection, transport


def finish(clock: Clock, connection: LimitedConnection) -> None:
    """Run the application until it has answered the requests so far."""
    while connection.tasks:
        clock.run_until_complete(asyncio.wait(connection.tasks))


def test_headers_have_a_deadline_that_their_bytes_do_not_change(clock: Clock) -> None:
    connection, transport = connect(clock)
    for byte in (REQUEST[i : i + 1] for i in range(len(REQUEST) - 1)):
        connection.data_received(byte)
    assert clock.waiting == [SECONDS_TO_SEND] and len(clock.timers) == 1
    clock.timers[0].action()
    assert transport.is_aborted


def test_deadline_ends_with_the_request_and_begins_again_after_the_answer(clock: Clock) -> None:
    connection, _ = connect(clock)
    for _ in range(2):
        connection.data_received(REQUEST)
        assert clock.waiting == []
        finish(clock, connection)
        assert clock.waiting == [IDLE_SECONDS, SECONDS_TO_SEND]
    connection.data_received(b"G")  # uvicorn does not take it for idle any more
    assert clock.waiting == [SECONDS_TO_SEND]
    connection.connection_lost(None)
    assert clock.waiting == []


def test_body_of_an_answered_request_does_not_keep_the_connection(clock: Clock) -> None:
    connection, _ = connect(clock)
    connection.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    finish(clock, connection)
    num_timers = len(clock.timers)
    for _ in range(3):
        connection.data_received(b"1\r\na\r\n")
    assert clock.waiting == [SECONDS_TO_SEND] and len(clock.timers) == num_timers


def test_client_that_does_not_read_has_a_deadline(clock: Clock) -> None:
    connection, transport = connect(clock)
    connection.data_received(REQUEST)
    connection.pause_writing()
    assert clock.waiting == [SECONDS_TO_READ]
    connection.resume_writing()
    assert clock.waiting == []
    connection.pause_writing()
    clock.timers[-1].action()
    assert transport.is_aborted
    connection.connection_lost(None)
    finish(clock, connection)


def test_connections_beyond_the_limit_are_closed_at_once(clock: Clock) -> None:
    state = ServerState()
    transports = [connect(clock, state)[1] for _ in range(MAX_OPEN_CONNECTIONS + 1)]
    assert [transport.is_aborted for transport in transports] == [False] * MAX_OPEN_CONNECTIONS + [True]
