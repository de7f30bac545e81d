"""A peer: the recipe by which nanoGPT prepares OpenWebText, on a Parquet file of one's own.

Hugging Face datasets splits and maps tiktoken over the documents; a memory map takes the tokens in 1024 batches. Its caches lie in
the output folder, so that a fresh folder is a cold start. The recipe hands `np.concatenate` a column of the batch, which datasets 4 and
later read row by row; `--column-at-once` reads it in one go, which the recipe does not do.
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


def load(path: Path, processes: int) -> Any:
    from datasets import load_dataset

    dataset = load_dataset("parquet", data_files=str(path), split="train", num_proc=processes)
    return dataset.train_test_split(test_size=VAL_FRACTION, seed=SEED, shuffle=True)


def tokenize(splits: Any, processes: int) -> Any:
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(row["text"])
        ids.append(encoding.eot_token)
        return {"ids": ids, "len": len(ids)}

    return splits.map(encode, remove_columns=["text"], desc="tokenizing", num_proc=processes)


def write(split: Any, path: Path, *, column_at_once: bool) -> int:
    """One flat file of uint16; how many tokens it holds."""
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
    parser.add_argument("--output", type=Path, required=True, help="a fresh folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--column-at-once", action="store_true", help="faster than the recipe: see above")
    arguments = parser.parse_args()
    # Before datasets is imported: it reads them once.
    os.environ.update(HF_HOME=str(arguments.output / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    splits = tokenize(load(arguments.input, arguments.processes), arguments.processes)
    for name, split in (("train", splits["train"]), ("val", splits["test"])):
        print(name, write(split, arguments.output / f"{name}.bin", column_at_once=arguments.column_at_once), "tokens")


if __name__ == "__main__":
    main()
