"""Randomness that is computed, not stored: keyed hashes and keyed permutations of uint64 arrays.

None of it is cryptography. The values decide the bytes of builds and the order of runs, so they may never change. NumPy only.
"""

from __future__ import annotations

from math import isqrt
from numbers import Integral

import numpy as np

from preprocess.errors import MisuseError

# Over 65 things the odds of a pair of places stray by 4 % after six rounds, by 29 % after four (measured). Fewer things are ranked.
_ROUNDS = 6
_SMALL = 64
# Made once: a batch hashes few numbers, and each of these would take as long as hashing one.
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_STREAM = np.arange(_SMALL, dtype=np.uint64) * _GOLDEN  # SplitMix64's states from 0


def mix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

    `x`: uint64, of one dimension or more; returns the same shape, each value mapped by a bijection that looks random.
    """
    x = x + _GOLDEN  # arrays wrap around in silence
    x ^= x >> _30
    x *= _FIRST
    x ^= x >> _27
    x *= _SECOND
    return x ^ (x >> _31)


def keyed_hash(seed: int, values: np.ndarray) -> np.ndarray:
    """uint64 hashes of `values`, (B,) uint64, under `seed`. Raises MisuseError for a seed outside 0 to 2**64 - 1."""
    return hash_under(hash_key(seed), values)


def hash_key(seed: int) -> np.uint64:
    """What hash_under takes. Raises MisuseError for a seed outside 0 to 2**64 - 1."""
    if not isinstance(seed, Integral) or not 0 <= seed < 1 << 64:
        raise MisuseError(f"seed {seed!r} is not a whole number from 0 to 2**64 - 1; set one that is")
    key: np.uint64 = mix64(np.array([seed], dtype=np.uint64))[0]
    return key


def hash_under(key: np.uint64, values: np.ndarray) -> np.ndarray:
    """keyed_hash, its key made before."""
    return mix64(mix64(values.astype(np.uint64) ^ key) ^ key)


def permute(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """The place of each `index` in a random-looking order of range(size), one order a key: for any key a bijection.

    `index`: (B,) uint64 below `size`. `size`: 1 to 2**62. `key`: (B,) uint64. Returns (B,) uint64. O(B) time and memory.
    Raises ValueError for a size or an index outside its range.
    """
    if not 1 <= size <= 1 << 62 or (index >= size).any():
        raise ValueError(f"permute wants a size from 1 to 2**62 and every index below it; the size is {size}")
    return _rank(index, size, key) if size <= _SMALL else _feistel(index, size, key)


def _rank(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """permute by the rank of each index's hash among all: as even as the hash. A bijection has no ties."""
    hashes = mix64(key[:, None] + _STREAM[:size])  # (B, size)
    own = np.take_along_axis(hashes, index.astype(np.int64)[:, None], axis=1)
    return (hashes < own).sum(axis=1).astype(np.uint64)


def _feistel(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """permute by the generalised Feistel cipher with cycle walking of Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002.

    A number is a pair of digits to the bases a and b, about √size each; every round adds a hash of one digit to the other.
    a·b exceeds `size` by less than a, so that hardly a number leaves the range and must walk on. Over the next power of
    four as many as three in four would, and 64 numbers at once would take some fifteen passes instead of one.
    """
    a = isqrt(size - 1) + 1
    b = -(-size // a)
    keys = mix64(key + _STREAM[:_ROUNDS, None])  # (rounds, B)
    out = _rounds(index, a, b, keys)
    while (outside := out >= size).any():
        out[outside] = _rounds(out[outside], a, b, keys[:, outside])
    return out


def _rounds(index: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    """A bijection on range(a × b): (B,) uint64 to the same. `keys`: (rounds, B) uint64."""
    high, low = np.divmod(index, np.uint64(a))
    for i in range(0, _ROUNDS, 2):
        low = (low + _digit_hash(high, keys[i])) % np.uint64(a)
        high = (high + _digit_hash(low, keys[i + 1])) % np.uint64(b)
    return high * np.uint64(a) + low


def _digit_hash(digit: np.ndarray, key: np.ndarray) -> np.ndarray:
    """48-bit hashes (B,) of digits (B,) under random keys (B,): room is left above for the sum. Half of mix64's time."""
    x = (digit ^ key) * np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0x94D049BB133111EB)
    return x >> np.uint64(16)
