"""Texts that end before a stop text."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from train.model.generate import cut_at_stop
from train.serving.stops import StopQueue

TEXTS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3)


def read_all(parts: list[Any], stops: list[str]) -> list[Any]:
    """Return what a StopQueue gives for `parts`, up to and with the object that ends them."""

    async def read() -> list[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for part in parts:
            queue.put_nowait(part)
        cut, found = StopQueue(queue, stops), []
        while not found or isinstance(found[-1], str):
            found.append(cut.get_nowait() if len(found) % 2 else await cut.get())
        return found

    return asyncio.run(read())


@given(st.lists(TEXTS, max_size=6), STOPS)
@example(["ba", "b"], ["a", "bab"])  # a stop text that ends later begins earlier
@example(["ba", "a"], ["a", "bab"])
def test_parts_together_are_the_text_before_the_first_stop(parts: list[str], stops: list[str]) -> None:
    *texts, end = read_all([*parts, None], stops)
    assert "".join(texts) == cut_at_stop("".join(parts), stops) and end is None and "" not in texts


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    assert read_all(["one t", "wo", " three", None], ["twx"]) == ["one ", "two", " three", None]


def test_report_of_an_error_ends_the_parts() -> None:
    error = object()
    assert read_all(["a", error, "b"], ["ab"]) == ["a", error]


def test_queue_without_parts_is_empty() -> None:
    with pytest.raises(asyncio.QueueEmpty):
        StopQueue(asyncio.Queue(), ["a"]).get_nowait()


@pytest.mark.parametrize(("text", "cut"), [("abc", "a"), ("acb", "a"), ("xyz", "xyz"), ("", "")])
def test_text_is_cut_at_the_earliest_stop(text: str, cut: str) -> None:
    assert cut_at_stop(text, ["b", "c"]) == cut
