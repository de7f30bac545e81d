"""Measures the memory that a call needs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def measure_peak_bytes(function: Callable[[], object]) -> int:
    """Return how many bytes of Python objects and NumPy arrays `function` needs at once. Arrow's are not counted."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
