"""Other tools' files, written from a build."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.files import HASH_CHUNK_BYTES, sync_folder
from preprocess.shards.format import SPLITS, Build


def export_nanogpt(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write `train.bin` and `val.bin`: bare little-endian uint16 tokens, the shards one after the other.

    No `meta.pkl`: it is a pickle, and nanoGPT's sampler takes one to mean a character vocabulary.
    Raises MisuseError where the ids need more than 16 bits, or where a file is there and `replace` is not set.
    """
    if build.dtype != np.dtype("<u2"):
        raise MisuseError(f"{build.name} has {build.vocab_size:,} ids, nanoGPT reads uint16; rebuild with a vocabulary of at most 65,536")
    paths = [output / f"{split}.bin" for split in SPLITS]
    for path in paths:
        if path.exists() and not replace:
            raise MisuseError(f"{path} is there already; pass --replace, or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    for split, path in zip(SPLITS, paths, strict=True):
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with open(aside, "wb") as file:
                for shard in build.shards(split):
                    for start in range(0, len(shard.tokens), HASH_CHUNK_BYTES):
                        shard.tokens[start : start + HASH_CHUNK_BYTES].tofile(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    sync_folder(output)
    return paths
