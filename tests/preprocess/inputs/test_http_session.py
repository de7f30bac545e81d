"""Answers of web servers that would fill the memory, or that never end."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from preprocess.errors import FolioError
from preprocess.inputs.remote.fetch import fetch_inputs
from preprocess.progress import Progress

REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /file.txt\r\n"
FILE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: a\r\n\r\nhello"
Send = Callable[[bytes], None]


@contextmanager
def serve(answer: Callable[[Send], None]) -> Iterator[str]:
    """Run a server that sends FILE for /file.txt and calls `answer` for other requests. Yields a URL."""

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            is_file = b"/file.txt" in connection.recv(1 << 16).split(b"\r\n", 1)[0]
            connection.sendall(FILE) if is_file else answer(connection.sendall)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=handle, args=listener.accept()[:1], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/start.txt"


def send_endless(start: bytes, block: bytes, pause_s: float = 0) -> Callable[[Send], None]:
    def answer(send: Send) -> None:
        send(start)
        while True:
            send(block)
            time.sleep(pause_s)

    return answer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("kind", ["endless", "compressed"])
def test_body_of_a_redirect_is_not_read(kind: str) -> None:
    body = gzip.compress(bytes(40 << 20), 1)
    head = REDIRECT + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = send_endless(REDIRECT + b"\r\n", bytes(1 << 16)) if kind == "endless" else lambda send: send(head + body)
    tracemalloc.start()
    try:
        with serve(answer) as url:
            (file,) = fetch_inputs([url], "auto", Progress(quiet=True))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    with open(file.path) as copied:
        assert copied.read() == "hello"


@pytest.mark.parametrize(
    ("start", "block", "pause_s"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.01),
    ],
)
def test_head_of_an_answer_has_an_end(
    start: bytes, block: bytes, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.inputs.http_session.MAX_HEAD_S", 0.3)
    with (
        serve(send_endless(start, block, pause_s)) as url,
        pytest.raises(FolioError, match="head of its answer is too"),
    ):
        fetch_inputs([url], "auto", Progress(quiet=True))
