"""Decode ids to text while they are generated, such that the parts together are the whole decoded text.

transformers has a streamer for this. It ends with an error if the bytes of a SentencePiece model are not
valid UTF-8, and never sends bytes at the end of a text that are not a whole character.

The text of an id can depend on later ones: a character can have the bytes of several ids, and the decoder of
a tokenizer with byte pieces (<0x0A>) replaces a run of them as a whole if it is not valid UTF-8. A part
therefore ends only where the text of the ids so far cannot change any more.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any

BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
REPLACEMENT = "\ufffd"  # decoded from bytes that are not a character


class Cancelled(Exception):
    """Raised in the thread that generates: the client is gone."""


class WholeStreamer:
    """Puts the parts of the text, and None at the end, into a queue.

    It has what `generate` and the handlers of transformers use: `put`, `end`, `cancel` and `total_tokens`.
    """

    def __init__(self, tokenizer: Any, queue: asyncio.Queue[Any], *, on_end: Callable[[list[int]], None]) -> None:
        """`tokenizer`: of the library tokenizers. `on_end` is called with all generated ids before the end is sent."""
        self._tokenizer, self._queue, self._on_end = tokenizer, queue, on_end
        self._loop = asyncio.get_running_loop()
        self._special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._is_prompt, self._is_cancelled = True, threading.Event()
        self._ids: list[int] = []
        self._text_ids: list[int] = []  # without special tokens, from the part before the next one on
        self._num_sent = 0  # how many of _text_ids are the part before the next one
        self.total_tokens = 0

    def put(self, value: Any) -> None:
        """Take the ids of the prompt, and then those of each step. Raises Cancelled after `cancel`."""
        if self._is_cancelled.is_set():
            raise Cancelled
        if self._is_prompt:
            self._is_prompt = False
            return
        ids = value.tolist()
        self.total_tokens += len(ids)
        self._ids += ids
        for i in ids:
            if i not in self._special_ids:
                self._text_ids.append(i)
                if not BYTE_PIECE.fullmatch(self._tokenizer.id_to_token(i) or ""):
                    self._send(is_end=False)

    def end(self) -> None:
        """Send the rest of the text, and the end."""
        self._send(is_end=True)
        self._on_end(self._ids)
        self.send(None)

    def cancel(self) -> None:
        """Make the next `put` raise Cancelled."""
        self._is_cancelled.set()

    def send(self, item: Any) -> None:
        """Put `item` into the queue, from any thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def _send(self, *, is_end: bool) -> None:
        """Send the text of the ids that are not sent yet, unless it may change.

        A decoder may treat the first id of a text in another way, so it also decodes the part before.
        """
        before, text = self._decode(self._text_ids[: self._num_sent]), self._decode(self._text_ids)
        if len(text) > len(before) and (is_end or not text.endswith(REPLACEMENT)):
            self.send(text[len(before) :])
            self._text_ids = self._text_ids[self._num_sent :]
            self._num_sent = len(self._text_ids)

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))
