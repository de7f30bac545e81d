"""A baseline: nanoGPT's recipe for OpenWebText (data/openwebtext/prepare.py), applied to a Parquet file.

Hugging Face datasets splits the documents and maps tiktoken over them; the tokens are copied to a
memory map in 1024 batches. The caches are in the output folder, so an empty folder is a cold start.

The recipe passes a column of the batch to `np.concatenate`, which datasets 4 and later read row by
row. `--column-at-once` reads the column in one call, as older versions did; the recipe does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import os
from typing import Any

import numpy as np

VAL_FRACTION = 0.1
SEED = 2357
NUM_BATCHES = 1024


def load_splits(path: Path, num_processes: int) -> Any:
    """Return the documents of `path`, shuffled and split."""
    from datasets import load_dataset

    dataset = load_dataset("parquet", data_files=str(path), split="train", num_proc=num_processes)
    return dataset.train_test_split(test_size=VAL_FRACTION, seed=SEED, shuffle=True)


def tokenize(splits: Any, num_processes: int) -> Any:
    """Replace each text by its ids, which end with the end-of-text id, and their number."""
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(row["text"])
        ids.append(encoding.eot_token)
        return {"ids": ids, "len": len(ids)}

    return splits.map(encode, remove_columns=["text"], desc="tokenizing", num_proc=num_processes)


def write_tokens(split: Any, path: Path, *, column_at_once: bool) -> int:
    """Write the ids of `split` to a flat file of uint16. Return their number."""
    total = int(split.with_format("numpy")["len"][:].sum())
    tokens = np.memmap(path, dtype=np.uint16, mode="w+", shape=(total,))
    num_batches = min(NUM_BATCHES, len(split))
    begin = 0
    for number in range(num_batches):
        batch = split.shard(num_shards=num_batches, index=number, contiguous=True).with_format("numpy")
        ids = np.concatenate(list(batch["ids"][:] if column_at_once else batch["ids"]))
        tokens[begin : begin + len(ids)] = ids
        begin += len(ids)
    tokens.flush()
    return begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=Path, help="a Parquet file with a column `text`")
    parser.add_argument("--output", type=Path, required=True, help="an empty folder")
    parser.add_argument("--processes", type=int, default=2, help="(default: 2)")
    parser.add_argument("--column-at-once", action="store_true", help="faster than the recipe: see above")
    arguments = parser.parse_args()
    # datasets reads these variables when it is imported.
    os.environ.update(HF_HOME=str(arguments.output / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    splits = tokenize(load_splits(arguments.input, arguments.processes), arguments.processes)
    for name, split in (("train", splits["train"]), ("val", splits["test"])):
        path = arguments.output / f"{name}.bin"
        print(name, write_tokens(split, path, column_at_once=arguments.column_at_once), "tokens")


if __name__ == "__main__":
    main()
