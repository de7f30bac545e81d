"""Encode with an untrusted tokenizer.json without waiting forever and without filling the memory.

The library `tokenizers` runs in Rust and cannot be interrupted. Three parts of a file can make it
slow: regular expressions (a single match is limited by Oniguruma, but not their number), and WordPiece
and BPE models on very long words. So a text is encoded in a thread, and if that takes far longer
than any real tokenizer needs, an error is raised while the thread continues; commands then end.

Normalizers can lengthen text. A file that can do so by more than a few times is tried on pieces of
each long text first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from preprocess.errors import FolioError

MIN_SECONDS = 5.0
MIN_BYTES_PER_SECOND = 20_000  # the slowest real tokenizers encode fifty times as much
MAX_UNCHECKED_GROWTH = 4.0  # one character of three bytes for a space
MAX_MEASURED_GROWTH = 4.0
PIECE_CHARACTERS = 4_000
NUM_PIECES = 4  # of a long text
Result = TypeVar("Result")


class LimitedEncoder:
    """A tokenizer of the library `tokenizers`, with limits on its time and memory."""

    def __init__(self, encoder: Any, *, counter: Any) -> None:
        """`counter`: a tokenizer with the normalizer of `encoder` and one id per character.

        It is None for an `encoder` that lengthens no text by more than MAX_UNCHECKED_GROWTH.
        """
        self._encoder, self._counter = encoder, counter

    def encode(self, texts: list[str]) -> list[Any]:
        """Return the library's encoding of each text, without special tokens.

        Raises FolioError if the tokenizer takes too long or makes a text much longer, and whatever
        the library raises.
        """
        num_bytes = sum(map(len, texts))
        return run_limited(lambda: self._encode(texts), MIN_SECONDS + num_bytes / MIN_BYTES_PER_SECOND)

    def _encode(self, texts: list[str]) -> list[Any]:
        if self._counter is not None:
            for text in texts:
                if len(text) > NUM_PIECES * PIECE_CHARACTERS:
                    _check_growth(text, self._counter)
        encodings: list[Any] = self._encoder.encode_batch_fast(texts, add_special_tokens=False)
        return encodings


def run_limited(work: Callable[[], Result], seconds: float) -> Result:
    """Return the result of `work`, or raise what it raises. Raises FolioError after `seconds`."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, daemon=True)  # the process can end while it runs
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise FolioError(
            f"the tokenizer has not encoded a text in {seconds:,.0f} s; it may be made to take forever: use another one"
        )
    return results[0]


def _check_growth(text: str, counter: Any) -> None:
    starts = [len(text) * i // NUM_PIECES for i in range(NUM_PIECES)]
    pieces = [text[start : start + PIECE_CHARACTERS] for start in starts]
    num_before = sum(map(len, pieces))
    num_after = sum(len(encoding.ids) for encoding in counter.encode_batch_fast(pieces, add_special_tokens=False))
    if num_after > MAX_MEASURED_GROWTH * num_before:
        raise FolioError(
            f"the tokenizer makes {num_after:,} characters of {num_before:,} before it encodes them; "
            "it may be made to fill the memory: use another one"
        )
