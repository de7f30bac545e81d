"""Encode with gigatoken, the fast backend.

gigatoken is a BPE encoder in Rust. The reference libraries (tiktoken, sentencepiece, tokenizers)
take and return Python objects and encode about 5 MB/s; gigatoken reads a whole Arrow column,
caches the ids of every word it has seen, and encodes about 200 MB/s. Encoding would otherwise
dominate the time of a build.

gigatoken may give other ids than the reference, so it is checked. When it starts, it must encode
PROBE_TEXTS as the reference does (`TwoBackendTokenizer.start_fast_backend`). During a build both
encode some of the documents (`preprocess/stages/encode.py`); if the ids differ, the build starts
again with the reference only. gigatoken is given no control tokens, because it would find them in
text.

Text and ids are not copied: awkward, gigatoken's array library, wraps Arrow's buffers, and the ids
are returned as NumPy views. The cost is memory, because the cache of words only grows.
`GigatokenBackend` therefore replaces its tokenizer when the process has become too large.

The import of gigatoken takes 0.04 s, so it happens when a backend is created. That of awkward takes
0.15 s, as long as encoding 30 MB, so the first few megabytes are encoded text by text without it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers

# With natural text the cache of gigatoken 0.10 stops growing at about 200 MB. With random words it
# grows by 8 bytes per byte of text. A new tokenizer costs 50 ms and is slow at first.
MAX_CACHE_BYTES = 192 << 20
# Part of a released cache is not returned to the system. A restart therefore frees little unless
# the process has grown by this much since the last restart.
MIN_GROWTH_BYTES = 32 << 20
MAX_ENCODED_BYTES = 64 << 20  # of text per restart, on systems that do not report a process's memory
MAX_BYTES_ONE_BY_ONE = 3 << 20  # of text that are encoded without awkward
CALL_BYTES = 1024  # a call of gigatoken takes as long as encoding this much text


class GigatokenBackend:
    """An encoder that uses gigatoken, and restarts it when its cache becomes too large."""

    def __init__(self, make_tokenizer: Callable[[Any], Any], *, num_threads: int = 1) -> None:
        """`make_tokenizer` takes the class gigatoken.Tokenizer and returns an instance of it.

        The instance must not know any control token. `num_threads` applies to the whole process:
        the first instance sets it. Raises ImportError if gigatoken cannot be imported.
        """
        os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))  # read when Rust's thread pool starts
        import gigatoken

        self._make_tokenizer, self._class = make_tokenizer, gigatoken.Tokenizer
        self._is_parallel = num_threads > 1
        self._bytes_one_by_one = 0
        self._restart()
        self._baseline_bytes = self._restart_bytes

    def _restart(self) -> None:
        self._tokenizer: Any = None  # release the old cache before the new tokenizer is made
        _trim_heap()
        self._tokenizer = self._make_tokenizer(self._class)
        self._encoded_bytes, self._restart_bytes = 0, measure_resident_bytes()

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """Return flat ids (N,) uint32 and the exclusive end of each text in them (D,) int64."""
        data, boundaries = get_text_buffers(texts)
        if self._is_cache_full(len(data)):
            self._restart()
        self._encoded_bytes += len(data)
        self._bytes_one_by_one += len(data) + CALL_BYTES * len(texts)
        if self._bytes_one_by_one <= MAX_BYTES_ONE_BY_ONE:
            return self._encode_one_by_one(data, boundaries)
        return self._encode_column(data, boundaries)

    def _encode_one_by_one(self, data: np.ndarray, boundaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode the texts between the `boundaries`, (D + 1,) int64, of `data`, (B,) uint8, without awkward."""
        encoded = [
            self._tokenizer.encode(data[start:stop].tobytes())
            for start, stop in itertools.pairwise(boundaries.tolist())
        ]
        ids = np.concatenate(encoded) if encoded else np.empty(0, np.uint32)
        return ids, np.cumsum([len(of_text) for of_text in encoded], dtype=np.int64)

    def _encode_column(self, data: np.ndarray, boundaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Encode the texts between the `boundaries`, (D + 1,) int64, of `data`, (B,) uint8, in one call."""
        import awkward
        from awkward import contents, index

        characters = contents.NumpyArray(data, parameters={"__array__": "char"})
        column = contents.ListOffsetArray(index.Index64(boundaries), characters, parameters={"__array__": "string"})
        layout = self._tokenizer.encode_batch(awkward.Array(column), parallel=self._is_parallel).layout
        return np.asarray(layout.content.data), np.asarray(layout.offsets.data)[1:]

    def _is_cache_full(self, batch_bytes: int) -> bool:
        now_bytes = measure_resident_bytes()
        if now_bytes is None or self._baseline_bytes is None or self._restart_bytes is None:
            return self._encoded_bytes > MAX_ENCODED_BYTES
        # The batch is already in memory, in two or three copies. They are not part of the cache.
        used_bytes = now_bytes - 2 * batch_bytes
        return (
            used_bytes - self._baseline_bytes > MAX_CACHE_BYTES and used_bytes - self._restart_bytes > MIN_GROWTH_BYTES
        )


def _trim_heap() -> None:
    """Make glibc return freed memory to the system: about a third of a full cache.

    Has no effect with other C libraries.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def measure_resident_bytes() -> int | None:
    """Return the resident memory of this process in bytes, without mapped files.

    Returns None if the system is not Linux.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
