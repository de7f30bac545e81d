"""Cut texts that are too long for one document."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.readers.record_blocks import find_cut
from preprocess.stages.slices import make_views


@dataclass(frozen=True)
class Parts:
    """The P parts of D texts."""

    texts: pa.LargeStringArray  # views of the texts, unless a part is missing
    rows: np.ndarray  # (P,) int64, the text to which each part belongs
    is_complete: np.ndarray  # (D,) bool; the rest of the other texts cannot be cut and is missing


def cut_long_texts(texts: pa.LargeStringArray, max_bytes: int) -> Parts:
    """Cut D texts at white space into parts of at most `max_bytes`.

    If the rest of a text cannot be cut, it is not among the parts.
    """
    data, offsets = get_text_buffers(texts)
    rows: list[int] = []
    ends: list[int] = []  # in `data`
    is_kept: list[bool] = []
    is_complete = np.ones(len(texts), bool)
    for row, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        while stop - start > max_bytes and (cut := find_cut(data.data, max_bytes, start)):
            rows.append(row)
            ends.append(cut)
            is_kept.append(True)
            start = cut
        is_complete[row] = stop - start <= max_bytes
        rows.append(row)
        ends.append(stop)
        is_kept.append(bool(is_complete[row]))
    parts = make_views(texts, np.array(ends, np.int64))
    if not is_complete.all():
        parts = parts.filter(pa.array(is_kept))
    return Parts(parts, np.array(rows, np.int64)[is_kept], is_complete)
