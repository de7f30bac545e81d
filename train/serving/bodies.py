"""Read the bodies of requests, with limits, so that no client can fill the server's memory or block it.

A client can promise a body and never send it. Without a limit of time, MAX_CONNECTIONS of such clients
would keep all others out, and each of them could make the server hold MAX_BODY_BYTES.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

MAX_BODY_BYTES = 4 << 20
MAX_UNREAD_BYTES = 64 << 20  # of all bodies that are not complete
SECONDS_TO_SEND = 60.0


class BodyError(Exception):
    """A body is too large or too slow. `status` is the HTTP status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BodyReader:
    """Reads the bodies of all requests of a server."""

    def __init__(self) -> None:
        self._num_bytes = 0  # of the bodies that are being read

    async def read(self, chunks: AsyncIterator[bytes]) -> bytes:
        """Return the body that consists of `chunks`.

        Raises BodyError if it has more than MAX_BODY_BYTES, if it takes more than SECONDS_TO_SEND, or if
        the bodies that are being read have more than MAX_UNREAD_BYTES together.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(SECONDS_TO_SEND):
                async for chunk in chunks:
                    body += chunk
                    self._num_bytes += len(chunk)
                    if len(body) > MAX_BODY_BYTES:
                        raise BodyError(413, f"the request has more than {MAX_BODY_BYTES:,} bytes")
                    if self._num_bytes > MAX_UNREAD_BYTES:
                        raise BodyError(503, "the server is reading too many large requests; try again later")
        except TimeoutError as e:
            raise BodyError(408, f"the request was not complete after {SECONDS_TO_SEND:g} s; send it again") from e
        finally:
            self._num_bytes -= len(body)
        return bytes(body)
