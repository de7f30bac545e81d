"""The bodies of requests: how large, and how slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from train.serving import bodies
from train.serving.bodies import BodyError, BodyReader


async def send(*chunks: bytes, then: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """Yield `chunks`, and wait for `then` before the end."""
    for chunk in chunks:
        yield chunk
    if then:
        await then.wait()


def test_body_is_its_chunks_and_has_at_most_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 4)
    assert asyncio.run(BodyReader().read(send(b"ab", b"", b"cd"))) == b"abcd"
    with pytest.raises(BodyError, match="more than 4 bytes") as error:
        asyncio.run(BodyReader().read(send(b"ab", b"cde")))
    assert error.value.status == 413


def test_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SECONDS_TO_SEND", 0.01)

    async def read() -> None:
        await BodyReader().read(send(b"ab", then=asyncio.Event()))

    with pytest.raises(BodyError, match=r"not complete after 0\.01 s") as error:
        asyncio.run(read())
    assert error.value.status == 408


def test_bodies_together_have_a_limit_until_they_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_UNREAD_BYTES", 10)

    async def read() -> None:
        reader, end = BodyReader(), asyncio.Event()
        waiting = asyncio.create_task(reader.read(send(b"12345678", then=end)))
        await asyncio.sleep(0)  # it reads its chunk
        with pytest.raises(BodyError) as error:
            await reader.read(send(b"abc"))
        assert error.value.status == 503 and await reader.read(send(b"ab")) == b"ab"
        end.set()
        assert await waiting == b"12345678" and await reader.read(send(b"abcdefghij")) == b"abcdefghij"

    asyncio.run(read())
