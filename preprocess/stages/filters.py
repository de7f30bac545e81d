"""Filters that drop documents by their length."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def select_by_length(
    texts: pa.LargeStringArray, min_characters: int | None, max_characters: int | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return which of D texts to keep, (D,) bool, and which are "too_short" and "too_long".

    Both bounds are inclusive and optional. Without bounds there are no counts.
    """
    keep, dropped = np.ones(len(texts), bool), {}
    if min_characters is not None or max_characters is not None:
        lengths = pc.utf8_length(texts).to_numpy()
        is_too_short = lengths < (min_characters or 0)
        is_too_long = lengths > (max_characters if max_characters is not None else np.iinfo(np.int64).max)
        dropped = {"too_short": is_too_short, "too_long": is_too_long}
        keep = ~(is_too_short | is_too_long)
    return keep, dropped
