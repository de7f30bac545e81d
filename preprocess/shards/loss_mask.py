"""The loss mask of a shard: one bit for each token, 1 if a model is trained to predict it.

The bits are in the order of the tokens. The first token has the lowest bit of the first byte. The
unused bits of the last byte are 0. Builds without chats have no masks: all their tokens count.

Many processes write a shard, and two of them may write tokens whose bits share a byte. So they write
a byte for each token, and the bytes are packed to bits when the shard is complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocess.shards.files import HASH_CHUNK_BYTES

UNPACKED_SUFFIX = "unpacked_mask"


def count_mask_bytes(num_tokens: int) -> int:
    """Return the size of the mask of `num_tokens` tokens."""
    return -(-num_tokens // 8)


def pack_mask(unpacked: Path, packed: Path) -> tuple[str, int]:
    """Write a mask of one byte for each token as bits, and delete the file `unpacked`.

    Returns the SHA-256 of the file `packed` and the number of tokens whose bit is 1.
    """
    digest, num_ones = hashlib.sha256(), 0
    with open(unpacked, "rb") as source, open(packed, "wb") as target:
        while chunk := source.read(HASH_CHUNK_BYTES):  # a multiple of 8, except the last
            is_learnt = np.frombuffer(chunk, bool)
            num_ones += int(np.count_nonzero(is_learnt))
            bits = np.packbits(is_learnt, bitorder="little").tobytes()
            digest.update(bits)
            target.write(bits)
        target.flush()
        os.fsync(target.fileno())
    unpacked.unlink()
    return digest.hexdigest(), num_ones


def unpack_mask(packed: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the mask of the tokens from `start` to `stop`, (stop - start,) bool. `packed`: (B,) uint8."""
    first_byte = start // 8
    bits = np.unpackbits(packed[first_byte : count_mask_bytes(stop)], bitorder="little")
    return bits[start - 8 * first_byte : stop - 8 * first_byte].astype(bool)


def gather_mask(
    masks: Sequence[np.ndarray | None], shard: np.ndarray, start: np.ndarray, num_tokens: int
) -> np.ndarray:
    """Return the masks of the `num_tokens` tokens from `start` on in `shard`: (B, num_tokens) bool.

    `masks`: the packed mask of each shard, (N,) uint8, or None if all its tokens count. `shard`,
    `start`: (B,) int64.
    """
    out = np.ones((len(shard), num_tokens), bool)
    for s in np.unique(shard):
        packed = masks[s]
        if packed is not None:
            rows = np.flatnonzero(shard == s)
            token = start[rows, None] + np.arange(num_tokens)  # (b, num_tokens)
            out[rows] = (packed[token >> 3] >> (token & 7).astype(np.uint8)) & 1
    return out


def read_bits(masks: Sequence[np.ndarray | None], shard: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Return the bit of each `token` in `shard`, (P,) int64 each: (P,) bool. `masks`: as for `gather_mask`."""
    out = np.ones(len(token), bool)
    for s in np.flatnonzero(np.bincount(shard)).tolist():
        packed, chosen = masks[s], np.flatnonzero(shard == s)
        if packed is not None:
            of_shard = token[chosen]
            out[chosen] = (packed[of_shard >> 3] >> (of_shard & 7).astype(np.uint8)) & 1
    return out


def count_ones(packed: np.ndarray) -> int:
    """Return the number of bits that are 1. `packed`: (B,) uint8."""
    chunks = (packed[i : i + HASH_CHUNK_BYTES] for i in range(0, len(packed), HASH_CHUNK_BYTES))
    return sum(int(np.unpackbits(chunk).sum(dtype=np.int64)) for chunk in chunks)
