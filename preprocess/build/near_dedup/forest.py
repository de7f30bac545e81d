"""Connected components of numbered items, which are joined pair by pair."""

from __future__ import annotations

import numpy as np


class Forest:
    """Components of N items as links from each item to an earlier one of its component, or to itself."""

    def __init__(self, links: np.ndarray) -> None:
        """`links`: (N,) int64, the numbers 0 to N - 1; modified. It may be mapped from a file, for many items."""
        self._links = links

    def find_first(self, items: np.ndarray) -> np.ndarray:
        """Return the first item of the component of each of (K,) items: (K,) int64."""
        nodes = first = np.asarray(self._links[items])
        while (next_first := np.asarray(self._links[first])).tobytes() != first.tobytes():
            # Each round doubles the way that a link skips. Without this, a chain of N links takes N rounds.
            self._links[nodes] = first = next_first
        self._links[items] = first  # shortens the way for the next call
        return first

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Join the components of the items a[i] and b[i], (K,) each."""
        while len(a):
            first_a, first_b = self.find_first(a), self.find_first(b)
            differs = first_a != first_b
            a, b = a[differs], b[differs]
            earlier, later = np.minimum(first_a, first_b)[differs], np.maximum(first_a, first_b)[differs]
            np.minimum.at(self._links, later, earlier)  # of several links of one item, the lowest wins
