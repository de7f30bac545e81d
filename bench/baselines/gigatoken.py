"""A peer: gigatoken alone, from files to ids in memory; nothing is cleaned, cut, hashed or written.

A text file is one document; of a Parquet file, each row of the column `text` is.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
from typing import Any

import numpy as np


def source_of(paths: list[Path]) -> Any:
    from gigatoken import ParquetFileSource, TextFileSource

    return ParquetFileSource(list(paths)) if paths[0].suffix == ".parquet" else TextFileSource(list(paths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=Path, nargs="+", help="text files, or Parquet files")
    parser.add_argument("--ranks", type=Path, required=True, help="GPT-2's ranks in tiktoken's text format")
    parser.add_argument("--output", type=Path, help="file for the ids and each document's end; none when time is taken")
    arguments = parser.parse_args()
    from gigatoken import Tokenizer

    tokenizer = Tokenizer.from_tiktoken(arguments.ranks, pretokenizer="gpt2")
    layout = tokenizer.encode_files(source_of(arguments.inputs)).layout
    ids, ends = np.asarray(layout.content.data), np.asarray(layout.offsets.data)[1:]
    print(f"{len(ends)} documents, {len(ids)} tokens")
    if arguments.output is not None:
        np.savez(arguments.output, ids=ids, ends=ends)


if __name__ == "__main__":
    main()
