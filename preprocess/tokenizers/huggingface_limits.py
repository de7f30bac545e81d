"""Encode with an untrusted tokenizer.json, with limits on time and memory.

The library `tokenizers` runs in Rust and cannot be interrupted. Three parts of a file can make it
slow: regular expressions (Oniguruma limits the time of one match, but not the number of matches),
and WordPiece and BPE models on very long words. Texts are therefore encoded in a thread. If that
takes far longer than any real tokenizer needs, FolioError is raised. The thread continues, but does
not keep the process from ending.

Normalizers can lengthen text. If those of a file can make a text more than a few times longer, they
are first applied to pieces of each long text, to measure by how much they lengthen it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from preprocess.errors import FolioError

MIN_SECONDS = 5.0
MIN_CHARACTERS_PER_SECOND = 20_000  # the slowest real tokenizers encode fifty times as much
MAX_UNCHECKED_GROWTH = 4.0  # in bytes; many files replace a space by a character of three bytes
MAX_MEASURED_GROWTH = 4.0  # in characters, of the pieces of a text
PIECE_CHARACTERS = 4_000
NUM_PIECES = 4  # of a long text
MAX_WAIT_S = 0.25  # in one call
Result = TypeVar("Result")


class LimitedEncoder:
    """A tokenizer of the library `tokenizers`, with limits on its time and memory."""

    def __init__(self, encoder: Any, *, counter: Any) -> None:
        """`counter`: a tokenizer with the normalizer of `encoder` and one id per character.

        It is None for an `encoder` that lengthens no text by more than MAX_UNCHECKED_GROWTH.
        """
        self._encoder, self._counter = encoder, counter

    def encode(self, texts: list[str]) -> list[Any]:
        """Return a tokenizers.Encoding of each text, without special tokens.

        Raises FolioError if the tokenizer takes too long or makes a text much longer, and the
        exceptions of the library.
        """
        num_characters = sum(map(len, texts))
        return run_limited(lambda: self._encode(texts), MIN_SECONDS + num_characters / MIN_CHARACTERS_PER_SECOND)

    def _encode(self, texts: list[str]) -> list[Any]:
        if self._counter is not None:
            for text in texts:
                if len(text) > NUM_PIECES * PIECE_CHARACTERS:
                    _check_growth(text, self._counter)
        encodings: list[Any] = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        return encodings


def run_limited(work: Callable[[], Result], seconds: float) -> Result:
    """Return the result of `work`, or raise its exception. Raises FolioError after `seconds`.

    The time in which the process is stopped, by Ctrl-Z, does not count.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)  # daemon: the process can end while the thread runs
    thread.start()
    for _ in range(math.ceil(seconds / MAX_WAIT_S)):  # a wait in which the process was stopped counts once
        thread.join(MAX_WAIT_S)
    if errors:
        raise errors[0]
    if not results:
        raise FolioError(
            f"the tokenizer has not finished encoding after {seconds:,.0f} s; its file may be malicious, use another "
            "tokenizer"
        )
    return results[0]


def _check_growth(text: str, counter: Any) -> None:
    """Raise FolioError if the normalizer makes pieces of `text` much longer."""
    starts = [len(text) * i // NUM_PIECES for i in range(NUM_PIECES)]
    pieces = [text[start : start + PIECE_CHARACTERS] for start in starts]
    num_before = sum(map(len, pieces))
    num_after = sum(len(encoding.ids) for encoding in counter.encode_batch_fast(pieces, add_special_tokens=False))
    if num_after > MAX_MEASURED_GROWTH * num_before:
        raise FolioError(
            f"the tokenizer normalizes {num_before:,} characters to {num_after:,}, expected at most "
            f"{MAX_MEASURED_GROWTH:g} times as many; its file may be malicious, use another tokenizer"
        )
