"""An HTTP server on loopback that sends files, with and without ranges, and fails as it is told."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Fault:
    """What happens to one request instead of, or before, the answer."""

    status: int = 0  # that is answered
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"<html>an error</html>"
    cut_after: int | None = None  # the connection is closed after this number of bytes of the body
    is_probe_spared: bool = True  # a request for a single byte is answered normally and leaves the fault in place


@dataclass
class Request:
    path: str
    start: int | None  # of the range
    headers: dict[str, str]


class FileServer:
    """Sends `files`, path -> content. Attributes can be changed while it runs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}  # of all answers, in place of those that the server makes
        self.has_ranges = True
        self.has_versions = True  # ETags
        self.faults: list[Fault] = []  # of the next requests, in turn
        self.delay_s = 0.0  # after every 64 KiB
        self.requests: list[Request] = []
        self.before_answer: Callable[[Request], None] = lambda request: None
        self.num_active = self.max_active = 0  # requests at once, without those for a single byte
        self.lock = threading.Lock()
        self.is_closed = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if owner.is_closed:  # a connection that was kept open
                    self.close_connection = True
                    return
                with owner.count_active(self.headers.get("Range", "")):
                    owner.answer(self)

            do_HEAD = do_GET

            def do_POST(self) -> None:
                owner.write(self)

            do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self) -> None:
        self.is_closed = True
        self.http.shutdown()
        self.http.server_close()

    @contextmanager
    def count_active(self, requested: str) -> Iterator[None]:
        amount = requested != "bytes=0-0"
        with self.lock:
            self.num_active += amount
            self.max_active = max(self.max_active, self.num_active)
        yield
        with self.lock:
            self.num_active -= amount

    def write(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request that sends something. A server of files rejects it."""
        handler.close_connection = True
        self.send(handler, 405, {}, b"")

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        match = RANGE.fullmatch(handler.headers.get("Range", ""))
        is_probe = match is not None and match[2] == "0"
        request = Request(handler.path, int(match[1]) if match else None, dict(handler.headers))
        self.requests.append(request)
        self.before_answer(request)
        fault = Fault()
        if self.faults and not (self.faults[0].is_probe_spared and is_probe):
            fault = self.faults.pop(0)
        if fault.status:
            self.send(handler, fault.status, fault.headers, fault.body)
        elif path not in self.files:
            self.send(handler, 404, {"Content-Type": "text/html"}, b"<html>not found</html>")
        else:
            self.send_file(handler, self.files[path], match, fault)

    def send_file(
        self, handler: BaseHTTPRequestHandler, data: bytes, match: re.Match[str] | None, fault: Fault
    ) -> None:
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'} if self.has_versions else {}
        status = 200
        if match and self.has_ranges:
            start = int(match[1])
            stop = min(int(match[2]) + 1 if match[2] else len(data), len(data))
            if start >= len(data):
                self.send(handler, 416, {**headers, "Content-Range": f"bytes */{len(data)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            status, data = 206, data[start:stop]
        self.send(handler, status, {**headers, **self.headers}, data, fault.cut_after)

    def send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes, cut: int | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        try:
            for begin in range(0, len(body) if cut is None else cut, 1 << 16):
                block = body[begin : min(begin + (1 << 16), len(body) if cut is None else cut)]
                handler.wfile.write(block)
                time.sleep(self.delay_s)
        except OSError:  # the client has gone
            handler.close_connection = True
        if cut is not None:
            handler.close_connection = True
