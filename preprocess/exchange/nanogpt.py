"""Export a build in nanoGPT's format: one file of uint16 token ids per split.

nanoGPT maps `train.bin` and `val.bin` into memory and reads windows at random offsets. The files
have no header: the tokens of all shards are concatenated, and only the end-of-text ids mark the
boundaries between documents.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from preprocess.errors import MisuseError
from preprocess.exchange.output import check_output
from preprocess.shards.files import open_atomic
from preprocess.shards.format import SPLITS, Build

CHUNK_TOKENS = 1 << 20


def export_nanogpt(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write `train.bin` and `val.bin` into the folder `output`, and return their paths.

    The tokens are little-endian uint16. No `meta.pkl` is written: it would be a pickle, and
    nanoGPT's sample.py would take it for the vocabulary of a character-level model. Raises
    MisuseError if the ids need more than 16 bits, or if a file exists and `replace` is not set.
    """
    if build.dtype != np.dtype("<u2"):
        raise MisuseError(
            f"{build.name} has {build.vocab_size:,} ids, but nanoGPT reads uint16; "
            "rebuild with a vocabulary of at most 65,536"
        )
    paths = [output / f"{split}.bin" for split in SPLITS]
    check_output(output, paths, replace=replace)
    output.mkdir(parents=True, exist_ok=True)
    # Both files are written before either is renamed, so after an error both old files are left.
    with contextlib.ExitStack() as stack:
        for split, path in zip(SPLITS, paths, strict=True):
            file = stack.enter_context(open_atomic(path))
            for shard in build.shards(split):
                for start in range(0, len(shard.tokens), CHUNK_TOKENS):
                    file.write(shard.tokens[start : start + CHUNK_TOKENS].data)
    return paths
