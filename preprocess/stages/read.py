"""Bytes of a file → a batch of one document."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from preprocess.documents import make_batch, texts_from_buffers
from preprocess.errors import FolioError
from preprocess.recipe import Recipe


def read_text_file(data: bytes, *, name: str, source: int, recipe: Recipe) -> pa.RecordBatch:
    """The whole file as one document, with the recipe's fixed metadata. Raises FolioError where it is not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise FolioError(
            f"{name} is not UTF-8: byte 0x{data[e.start]:02x} at offset {e.start:,} ({e.reason}); "
            f"convert it, for example with `iconv -f WINDOWS-1251 -t UTF-8`"
        ) from e
    texts = texts_from_buffers(np.frombuffer(data, np.uint8), np.array([0, len(data)]))
    fixed = {"author": recipe.author, "city": recipe.city, "year": recipe.year, "lang": recipe.lang}
    return make_batch({"text": texts, "source": source, "position": 0, **fixed}, 1)
