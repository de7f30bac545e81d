"""Cut a streamed text before a stop text, as OpenAI's API does.

transformers ends the generation after a stop text, but leaves the stop text in the answer. A stop text
can be divided among several parts of the stream, so the end of the text that could begin one is held back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from train.model.generate import cut_at_stop


class StopQueue:
    """The queue of a stream's parts without the stop text and what follows it.

    It has the two methods of asyncio.Queue by which transformers' handlers read. Parts are texts; None, and
    objects of other types that report an error, end the stream.
    """

    def __init__(self, queue: asyncio.Queue[Any], stops: Sequence[str]) -> None:
        self._queue, self._stops = queue, stops
        self._held = ""  # text that may be the beginning of a stop text, to the end of what came
        self._is_stopped = False
        self._ready: deque[Any] = deque()

    async def get(self) -> Any:
        """Return the next part; wait for it if there is none."""
        while not self._ready:
            self._add(await self._queue.get())
        return self._ready.popleft()

    def get_nowait(self) -> Any:
        """Return the next part. Raises asyncio.QueueEmpty if there is none yet."""
        while not self._ready:
            self._add(self._queue.get_nowait())
        return self._ready.popleft()

    def _add(self, part: Any) -> None:
        if not isinstance(part, str):
            held = cut_at_stop(self._held, self._stops)
            self._ready.extend([held, part] if held else [part])
            self._held = ""
        elif not self._is_stopped:
            text = self._held + part
            num_shown = len(text) - max(self._count_held(text, stop) for stop in self._stops)
            # A stop text is final, unless another one may begin before it.
            cut = cut_at_stop(text, self._stops)
            self._is_stopped = len(cut) < len(text) and len(cut) <= num_shown
            shown, self._held = (cut, "") if self._is_stopped else (text[:num_shown], text[num_shown:])
            if shown:
                self._ready.append(shown)

    @staticmethod
    def _count_held(text: str, stop: str) -> int:
        """Return how many characters at the end of `text` are the beginning of `stop`."""
        return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
