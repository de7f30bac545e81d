"""Choose the build that each training sample comes from, if a run trains on several builds.

The problem: if the build were chosen at random for each sample, the proportions would be right only
on average, and the k-th sample of a build would depend on all random choices before it.

The idea: the build of a sample, and the number of the sample within that build, are a pure function
of (seed, sample number). Samples are divided into cycles of 65,536. In every cycle a build has a
fixed number of slots, its weight rounded to whole slots, and a keyed permutation of the cycle
(permutation.py) assigns a slot to each sample. So the proportions are the same in every cycle. The
number of a sample within its build follows from the cycle and the slot, and each of the numbers 0,
1, 2, … of a build is used exactly once.

The cost: assigning B samples takes O(B) time; the only tables have one number per build. Uses NumPy
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isfinite

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.permutation import keyed_hash, mix64, permute

CYCLE = 65_536  # samples; the fraction of a build is its weight to within about 1 / CYCLE


class Mixture:
    """Assigns samples to builds in proportion to weights.

    Within a cycle the numbers of a build's samples are shuffled. So a mixture of one build has the
    same samples in each cycle as the build alone, but in another order.
    """

    slots: tuple[int, ...]  # the number of slots of each build in a cycle

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        """`weights`: one per build; they need not sum to 1.

        A weight of 0 excludes a build. A build with any other weight gets at least one slot.

        Raises MisuseError for weights that are negative, not finite or all zero, for more than
        65,536 weights, and for a seed outside 0 to 2**64 - 1.
        """
        self.slots = tuple(_apportion_slots(weights))
        self._num_slots = np.array(self.slots, dtype=np.uint64)
        self._edges = np.cumsum(self._num_slots, dtype=np.uint64)  # (S,) exclusive end of each build's slots
        self._first = self._edges - self._num_slots  # (S,)
        self._key = keyed_hash(seed, np.frombuffer(b"mixture\0", dtype="<u8"))  # (1,)

    def assign(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the build, (B,) int64, and the number within it, (B,) uint64, of each sample.

        `samples`: (B,), sample numbers.
        """
        cycle, index = np.divmod(samples.astype(np.uint64), np.uint64(CYCLE))
        slot = permute(index, CYCLE, mix64(cycle ^ self._key))
        build = np.searchsorted(self._edges, slot, side="right")
        return build, cycle * self._num_slots[build] + slot - self._first[build]


def _apportion_slots(weights: Sequence[float]) -> list[int]:
    """Return the number of slots of each build.

    A build with a weight above 0 that is worth less than one slot gets one slot. The other builds
    share the remaining slots by the largest-remainder method; of equal remainders the earlier build
    comes first. Fractions are used because the last bit of a sum of floats differs between versions
    of Python.
    """
    if not all(isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise MisuseError(
            f"weights must be finite, at least 0 and not all 0, got {list(weights)}; give one such weight per build"
        )
    if len(weights) > CYCLE:
        raise MisuseError(f"{len(weights)} builds are too many for a mixture; give at most {CYCLE}")
    slots = [0] * len(weights)
    rest = {s: Fraction(w) for s, w in enumerate(weights) if w}
    while True:
        slot_weight = sum(rest.values(), Fraction(0)) / (CYCLE - sum(slots))
        small = [s for s, w in rest.items() if w < slot_weight]
        if not small:
            break
        for s in small:
            slots[s] = 1
            del rest[s]
    exact = {s: w / slot_weight for s, w in rest.items()}
    for s, share in exact.items():
        slots[s] = int(share)
    by_remainder = sorted(exact, key=lambda s: exact[s] % 1, reverse=True)
    for s in by_remainder[: CYCLE - sum(slots)]:
        slots[s] += 1
    return slots
