"""A baseline: gigatoken alone, from files to ids in memory. It does not clean, split, hash or write anything.

A text file is one document; in a Parquet file, each row of the column `text` is one.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=Path, nargs="+", help="text files, or Parquet files")
    parser.add_argument("--ranks", type=Path, required=True, help="GPT-2's ranks in tiktoken's text format")
    parser.add_argument(
        "--output", type=Path, help="file for the ids and the end of each document (default: not written, for timing)"
    )
    arguments = parser.parse_args()
    from gigatoken import ParquetFileSource, TextFileSource, Tokenizer

    tokenizer = Tokenizer.from_tiktoken(arguments.ranks, pretokenizer="gpt2")
    source_type = ParquetFileSource if arguments.inputs[0].suffix == ".parquet" else TextFileSource
    layout = tokenizer.encode_files(source_type(list(arguments.inputs))).layout
    ids, ends = np.asarray(layout.content.data), np.asarray(layout.offsets.data)[1:]
    print(f"{len(ends)} documents, {len(ids)} tokens")
    if arguments.output is not None:
        np.savez(arguments.output, ids=ids, ends=ends)


if __name__ == "__main__":
    main()
