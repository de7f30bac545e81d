"""A baseline: datatrove's ParquetReader and DocumentTokenizer with their default settings, one task per file."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import os

from bench.lib.vocabulary import END_OF_TEXT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="Parquet files with a column `text`, one per task")
    parser.add_argument("--tokenizer", type=Path, required=True, help="GPT-2's tokenizer.json")
    parser.add_argument("--output", type=Path, required=True, help="an empty folder")
    parser.add_argument("--tasks", type=int, default=2, help="(default: 2)")
    arguments = parser.parse_args()
    os.environ.update(HF_HOME=str(arguments.output / "hf"), HF_HUB_OFFLINE="1")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizer = DocumentTokenizer(
        str(arguments.output / "tokens"), tokenizer_name_or_path=str(arguments.tokenizer), eos_token=END_OF_TEXT, seed=0
    )
    LocalPipelineExecutor(
        [ParquetReader(str(arguments.folder), glob_pattern="*.parquet"), tokenizer],
        tasks=arguments.tasks,
        workers=arguments.tasks,
        logging_dir=str(arguments.output / "logs"),
    ).run()


if __name__ == "__main__":
    main()
