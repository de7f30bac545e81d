"""Write WARC files for tests."""

from __future__ import annotations

HTML_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"


def make_record(type_: str, block: bytes, content_type: str = "text/plain", **headers: str) -> bytes:
    """Return one record of a WARC file."""
    fields = {
        "WARC-Type": type_, "WARC-Record-ID": "<urn:uuid:1>", "WARC-Date": "2026-01-01T00:00:00Z",
        "Content-Type": content_type, "Content-Length": str(len(block)), **headers,
    }  # fmt: skip
    head = "WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + block + b"\r\n\r\n"


def make_response(body: bytes, head: str = HTML_HEAD) -> bytes:
    """Return the record of a response of a web server."""
    return make_record("response", head.encode() + b"\r\n" + body, "application/http; msgtype=response")


def make_page(text: str) -> bytes:
    """Return an HTML page whose main text is `text`."""
    return (
        "<!doctype html><html><head><title>Title</title><style>p {color: red}</style></head><body>"
        f"<nav><a href='/'>Home</a></nav><article><p>{text}</p></article><script>run()</script></body></html>"
    ).encode()
