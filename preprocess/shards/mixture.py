"""Sample number → which of several builds it comes from, and the how-manyth sample of that build it is. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isfinite

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.permutation import keyed_hash, mix64, permute

CYCLE = 65_536  # samples; a weight is met to about one part in this many


class Mixture:
    """Samples dealt out to sources by weight, as a pure function of (seed, sample number).

    Time is cut into cycles of 65,536 samples. In each, every source has its slots, in proportion to its weight; which slot
    a sample takes is a permutation keyed by (seed, cycle). So each source's numbers 0, 1, 2, … are used exactly once, those
    of one cycle in shuffled order. A mixture of one source shuffles too: its first n cycles hold the same samples as the
    source alone, in another order.
    """

    slots: tuple[int, ...]  # of each source in a cycle

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        """`weights`: of each source, to any sum. Zero takes a source out, any other weight gives it a slot a cycle at least.

        Raises MisuseError for weights that are negative, not finite or all zero, for more than 65,536 of them, and for a
        seed beyond 64 bits.
        """
        self.slots = tuple(_share_out(weights))
        self._num_slots = np.array(self.slots, dtype=np.uint64)
        self._edges = np.cumsum(self._num_slots, dtype=np.uint64)  # (S,) exclusive ends of each source's slots
        self._first = self._edges - self._num_slots
        self._key = keyed_hash(seed, np.frombuffer(b"mixture\0", dtype="<u8"))

    def assign(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`samples`: (B,) sample numbers. Returns the source (B,) int64 and the sample's number in it (B,) uint64."""
        cycle, place = np.divmod(samples.astype(np.uint64), np.uint64(CYCLE))
        slot = permute(place, CYCLE, mix64(cycle ^ self._key))
        source = np.searchsorted(self._edges, slot, side="right")
        return source, cycle * self._num_slots[source] + slot - self._first[source]


def _share_out(weights: Sequence[float]) -> list[int]:
    """Slots of each source: one for every weight that is too small for one, the rest by largest remainder, ties to the first.

    In fractions, since the last bit of a sum of floats is not the same in every version of Python.
    """
    if not all(isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise MisuseError(
            f"the weights {list(weights)} are no mixture; give each build 0 or more, and one of them more than 0"
        )
    if len(weights) > CYCLE:
        raise MisuseError(f"{len(weights)} builds are too many for a mixture; give at most {CYCLE}")
    slots = [0] * len(weights)
    rest = {s: Fraction(w) for s, w in enumerate(weights) if w}
    while True:
        unit = sum(rest.values(), Fraction(0)) / (CYCLE - sum(slots))  # the weight of one slot
        small = [s for s, w in rest.items() if w < unit]
        if not small:
            break
        for s in small:
            slots[s] = 1
            del rest[s]
    exact = {s: w / unit for s, w in rest.items()}
    for s, share in exact.items():
        slots[s] = int(share)
    by_remainder = sorted(exact, key=lambda s: exact[s] % 1, reverse=True)
    for s in by_remainder[: CYCLE - sum(slots)]:
        slots[s] += 1
    return slots
