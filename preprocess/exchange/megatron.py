"""Export a build to Megatron-LM's indexed datasets: `.bin` with the tokens, and `.idx` with the documents.

`.idx` has a header, the length of each sequence (int32), its offset in bytes (int64), and the number
of the first sequence of each document (int64). Here each document is one sequence.

Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.errors import MisuseError
from preprocess.exchange.output import check_no_leftovers, check_output, write_together
from preprocess.exchange.tokens import CHUNK_DOCUMENTS, iter_ends, iter_tokens
from preprocess.shards.format import SPLITS, Build

MAGIC, VERSION = b"MMIDIDX\0\0", 1
DTYPE_CODES = {"<u2": 8, "<i4": 4}
# Megatron-LM writes uint16 for smaller vocabularies only, but one of its readers takes all vocabularies of less than
# 65,536 for uint16. Between the two, files that it wrote itself are misread.
MAX_UINT16_VOCAB = 65_500
MIN_INT32_VOCAB = (1 << 16) + 1


def export_megatron(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write a build to the files `train.bin`, `train.idx`, `val.bin` and `val.idx`, and return their paths.

    The path of a split without its suffix is an element of Megatron-LM's `--data-path`. A split without
    documents gets no files. Raises MisuseError if Megatron-LM would misread a vocabulary of this size,
    or like `check_output`, and FolioError if the build is damaged.
    """
    if MAX_UINT16_VOCAB <= build.vocab_size < MIN_INT32_VOCAB:
        raise MisuseError(
            f"{build.name} has {build.vocab_size:,} ids; Megatron-LM misreads vocabularies of {MAX_UINT16_VOCAB:,} to "
            f"{MIN_INT32_VOCAB - 1:,} ids; rebuild with a smaller or a larger vocabulary"
        )
    dtype = "<u2" if build.vocab_size < MAX_UINT16_VOCAB else "<i4"
    splits = [split for split in SPLITS if build.manifest.splits[split].documents]
    paths = {split: (output / f"{split}.bin", output / f"{split}.idx") for split in splits}
    all_paths = [path for of_split in paths.values() for path in of_split]
    # A validation split of another build beside the new training split would be taken for its own.
    check_no_leftovers(output, all_paths, [f"{split}.{suffix}" for split in SPLITS for suffix in ("bin", "idx")])
    check_output(output, all_paths, replace=replace)
    output.mkdir(parents=True, exist_ok=True)
    with write_together() as new, build.reading():
        for split, (tokens_path, index_path) in paths.items():
            with new.open(tokens_path) as file:
                for tokens in iter_tokens(build, split):
                    file.write(tokens.astype(dtype, copy=False).data)
            with new.open(index_path) as file:
                _write_index(file, build, split, dtype)
    return all_paths


def _write_index(file: BinaryIO, build: Build, split: str, dtype: str) -> None:
    """Write `.idx`. The ends are read twice, because a table of all lengths might not fit in memory."""
    num_documents, item_bytes = build.manifest.splits[split].documents, np.dtype(dtype).itemsize
    file.write(MAGIC + struct.pack("<QBQQ", VERSION, DTYPE_CODES[dtype], num_documents, num_documents + 1))
    last = 0
    for ends in iter_ends(build, split):
        file.write(np.diff(ends, prepend=last).astype("<i4").data)
        last = int(ends[-1])
    last = 0
    for ends in iter_ends(build, split):
        begins = np.concatenate([[last], ends[:-1]])
        file.write((begins * item_bytes).astype("<i8").data)
        last = int(ends[-1])
    for first in range(0, num_documents + 1, CHUNK_DOCUMENTS):
        file.write(np.arange(first, min(first + CHUNK_DOCUMENTS, num_documents + 1), dtype="<i8").data)
