"""Which side a document falls on, and where a long text is cut.

`exact`: of N groups, round(N × val_fraction) go to validation, those with the smallest keyed hash.
`contiguous`: each file is cut once, at its share of characters.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.documents import SCHEMA, make_batch
from preprocess.errors import FolioError
from preprocess.shards.windows import keyed_hash

BLANK_LINE = "\n\n"


def contiguous_cut(num_characters: int, val_fraction: float) -> int:
    """How many of `num_characters` train: the floor of their share, in exact arithmetic, as nanoGPT cuts."""
    return int(num_characters * (1 - Fraction(str(val_fraction))))


def passage_ends(text: str, num_characters: int) -> list[int]:
    """Ends of passages of about `num_characters`, in characters; the last is the end of `text`.

    A passage ends behind the last blank line within its first `num_characters`, else behind the next one, and takes
    all of the blank lines with it: joined, the passages are `text`.
    """
    ends, start = [], 0
    while len(text) - start > num_characters:
        begin = _skip_line_feeds(text, start)  # blank lines at the very front are no passage of their own
        cut = text.rfind(BLANK_LINE, begin, start + num_characters)
        if cut < 0:
            cut = text.find(BLANK_LINE, max(begin, start + num_characters - 1))
        if cut < 0:
            break
        start = _skip_line_feeds(text, cut)
        ends.append(start)
    return ends if ends and ends[-1] == len(text) else [*ends, len(text)]


def _skip_line_feeds(text: str, start: int) -> int:
    while start < len(text) and text[start] == "\n":
        start += 1
    return start


def cut_document(batch: pa.RecordBatch, *, val_fraction: float, passage_characters: int | None) -> tuple[pa.RecordBatch, np.ndarray]:
    """The one document of `batch` cut into its two sides, each in passages where `passage_characters` is given.

    Returns the pieces in reading order with their positions, and for each whether it is validation: (D,) bool.
    A side without a character gives no document.
    """
    text = batch.column("text")[0].as_py()
    border = contiguous_cut(len(text), val_fraction)
    pieces: list[str] = []
    in_val: list[bool] = []
    for side, is_val in ((text[:border], False), (text[border:], True)):
        start = 0
        for end in (passage_ends(side, passage_characters) if passage_characters else [len(side)]) if side else []:
            pieces.append(side[start:end])
            in_val.append(is_val)
            start = end
    columns: dict[str, Any] = {field.name: batch.column(field.name)[0].as_py() for field in SCHEMA if field.name != "text"}
    columns |= {"text": pa.array(pieces, pa.large_string()), "position": np.arange(len(pieces))}
    return make_batch(columns, len(pieces)), np.array(in_val, bool)


def exact_split(groups: np.ndarray, val_fraction: float, *, seed: int) -> np.ndarray:
    """Whether each document is validation: (D,) bool.

    `groups`: (D, 2) uint64, the 128-bit hash of each document's group. Raises FolioError where a side would be empty.
    """
    unique, inverse = np.unique(groups, axis=0, return_inverse=True)
    num_val = round(len(unique) * val_fraction)
    if num_val == 0 or num_val == len(unique):
        raise FolioError(
            f"{len(unique):,} documents cannot be split with val_fraction {val_fraction}: one side would be empty; "
            "add documents or choose another val_fraction"
        )
    key = keyed_hash(seed, unique[:, 0] ^ keyed_hash(seed, unique[:, 1]))
    # lexsort's last key is the first: ties of the 64-bit key are settled by the 128 bits themselves.
    order = np.lexsort((unique[:, 1], unique[:, 0], key))
    in_val = np.zeros(len(unique), bool)
    in_val[order[:num_val]] = True
    return in_val[inverse.reshape(-1)]
