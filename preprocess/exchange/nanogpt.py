"""TODO."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.files import HASH_CHUNK_BYTES, written_aside
from preprocess.shards.format import SPLITS, Build, check_no_build


def export_nanogpt(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write `train.bin` and `val.bin`: bare little-endian uint16 tokens, the shards one after the other.

    No `meta.pkl`: it is a pickle, and nanoGPT's sampler takes one to mean a character vocabulary.
    Raises MisuseError where the ids need more than 16 bits, or where a file is there and `replace` is not set.
    """
    if build.dtype != np.dtype("<u2"):
        raise MisuseError(
            f"{build.name} has {build.vocab_size:,} ids, nanoGPT reads uint16; rebuild with a vocabulary of at most 65,536"
        )
    check_no_build(output, "in which nothing else may lie")
    paths = [output / f"{split}.bin" for split in SPLITS]
    for path in paths:
        if path.exists() and not replace:
            raise MisuseError(f"{path} is there already; pass --replace, or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    # Both are written before either takes its place: a failure leaves no pair of which one is old.
    with contextlib.ExitStack() as stack:
        for split, path in zip(SPLITS, paths, strict=True):
            file = stack.enter_context(written_aside(path))
            for shard in build.shards(split):
                for start in range(0, len(shard.tokens), HASH_CHUNK_BYTES):
                    file.write(shard.tokens[start : start + HASH_CHUNK_BYTES].data)
    return paths
