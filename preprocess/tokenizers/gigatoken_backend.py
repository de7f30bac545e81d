"""gigatoken as an engine: the Arrow column's buffers in, NumPy views out, its caches bounded.

The only file that imports gigatoken and awkward (0.2 s).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import text_buffers

# gigatoken 0.10 keeps every word it ever saw: natural text settles at 200 MB, random words take 8 bytes for each of theirs. A new one
# costs 50 ms and a slower start.
MAX_CACHE_BYTES = 192 << 20
# Some of what is let go stays with the process: it must have grown by so much again before that is worth another start.
MIN_GROWTH_BYTES = 32 << 20
MAX_ENCODED_BYTES = 64 << 20  # where the system does not tell how much memory a process holds


class GigatokenBackend:
    """Encodes batches with a gigatoken tokenizer that `make` creates anew when it has grown too large.

    Raises ImportError where gigatoken or awkward cannot be imported.
    """

    def __init__(self, make: Callable[[Any], Any], *, num_threads: int = 1) -> None:
        """`make`: given the class gigatoken.Tokenizer, returns one. It must know no control token: it would see them in text."""
        os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))
        import awkward
        import gigatoken

        self._awkward, self._make, self._class = awkward, make, gigatoken.Tokenizer
        self._is_parallel = num_threads > 1
        self._renew()
        self._first_bytes = self._resident_bytes

    def _renew(self) -> None:
        self._tokenizer: Any = None  # the old one's memory goes before the new one's comes
        _give_back()
        self._tokenizer = self._make(self._class)
        self._encoded_bytes, self._resident_bytes = 0, resident_bytes()

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """Flat ids (N,) uint32 and each text's exclusive end (D,) int64."""
        contents, index = self._awkward.contents, self._awkward.index
        data, boundaries = text_buffers(texts)
        if self._is_full(len(data)):
            self._renew()
        self._encoded_bytes += len(data)
        characters = contents.NumpyArray(data, parameters={"__array__": "char"})
        column = contents.ListOffsetArray(index.Index64(boundaries), characters, parameters={"__array__": "string"})
        layout = self._tokenizer.encode_batch(self._awkward.Array(column), parallel=self._is_parallel).layout
        return np.asarray(layout.content.data), np.asarray(layout.offsets.data)[1:]

    def _is_full(self, num_bytes: int) -> bool:
        now = resident_bytes()
        if now is None or self._first_bytes is None or self._resident_bytes is None:
            return self._encoded_bytes > MAX_ENCODED_BYTES
        # What is about to be encoded is there already, in two or three copies of which none is the cache's.
        held = now - 2 * num_bytes
        return held - self._first_bytes > MAX_CACHE_BYTES and held - self._resident_bytes > MIN_GROWTH_BYTES


def _give_back() -> None:
    """Have the C library return to the system what it holds for later: a third of what a full cache had (glibc alone knows how)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def resident_bytes() -> int | None:
    """Memory of its own that this process holds, mapped files apart; None where the system does not say so in a file (all but Linux)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
