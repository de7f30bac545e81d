"""Documents too short or too long, left out and counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def within_bounds(
    texts: pa.LargeStringArray, min_characters: int | None, max_characters: int | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Which texts keep within the bounds, each None for unbounded: (D,) bool; and how many were too short and too long."""
    keep, counts = np.ones(len(texts), bool), {}
    if min_characters is not None or max_characters is not None:
        lengths = pc.utf8_length(texts).to_numpy()
        for name, is_out in (
            ("too_short", lengths < (min_characters or 0)),
            ("too_long", lengths > (max_characters if max_characters is not None else np.iinfo(np.int64).max)),
        ):
            counts[name] = int(is_out.sum())
            keep &= ~is_out
    return keep, counts
