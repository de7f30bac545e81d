"""gigatoken as an engine: the Arrow column's buffers in, NumPy views out, its caches bounded.

The only file that imports gigatoken and awkward (0.2 s).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import text_buffers

# gigatoken 0.10 keeps every word it ever saw: about 8 bytes for each byte of random words. A new one costs 50 ms, so
# starting anew at this many bytes bounds it at about half a gigabyte whatever the text.
RENEW_AFTER_BYTES = 64 << 20


class GigatokenEngine:
    """Encodes batches with a gigatoken tokenizer that `make` creates anew from time to time.

    Raises ImportError where gigatoken or awkward cannot be imported.
    """

    def __init__(self, make: Callable[[Any], Any]) -> None:
        """`make`: given the class gigatoken.Tokenizer, returns one. It must know no control token: it would see them in text."""
        import awkward
        import gigatoken

        self._awkward, self._make, self._class = awkward, make, gigatoken.Tokenizer
        self._tokenizer = make(self._class)
        self._encoded_bytes = 0

    def encode(self, texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        """Flat ids (N,) uint32 and each text's exclusive end (D,) int64."""
        contents, index = self._awkward.contents, self._awkward.index
        data, borders = text_buffers(texts)
        if self._encoded_bytes > RENEW_AFTER_BYTES:
            self._tokenizer, self._encoded_bytes = self._make(self._class), 0
        self._encoded_bytes += len(data)
        characters = contents.NumpyArray(data, parameters={"__array__": "char"})
        column = contents.ListOffsetArray(index.Index64(borders), characters, parameters={"__array__": "string"})
        layout = self._tokenizer.encode_batch(self._awkward.Array(column)).layout
        return np.asarray(layout.content.data), np.asarray(layout.offsets.data)[1:]
