"""The baselines as jobs. Each runs in a fresh process with the Python of the bench."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.lib.measure import Job
from bench.lib.text_formats import TextFiles
from bench.lib.vocabulary import Vocabulary

FOLDER = Path(__file__).resolve().parent
BASELINES = ("nanogpt", "nanogpt-columns", "datatrove", "gigatoken", "gigatoken-parquet")


def make_job(name: str, files: TextFiles, vocabulary: Vocabulary) -> Job:
    """Return the baseline `name` as it is timed."""
    if name == "nanogpt":
        return nanogpt_job(files)
    if name == "nanogpt-columns":
        return nanogpt_job(files, "--column-at-once")
    if name == "datatrove":
        return datatrove_job(files, vocabulary)
    return gigatoken_job([files.parquet if name == "gigatoken-parquet" else files.text], vocabulary)


def nanogpt_job(files: TextFiles, *options: str) -> Job:
    return lambda folder: _make_command("nanogpt.py", files.parquet, "--output", folder, *options)


def datatrove_job(files: TextFiles, vocabulary: Vocabulary) -> Job:
    tokenizer = vocabulary.tokenizer_json
    return lambda folder: _make_command("datatrove.py", files.halves, "--tokenizer", tokenizer, "--output", folder)


def gigatoken_job(inputs: list[Path], vocabulary: Vocabulary, *, output: str | None = None) -> Job:
    """Return a job that encodes `inputs`, and writes the ids to the file `output` in its folder unless it is None."""

    def command(folder: Path) -> list[str]:
        output_options = ["--output", str(folder / output)] if output else []
        return _make_command("gigatoken.py", *inputs, "--ranks", vocabulary.rank_file, *output_options)

    return command


def _make_command(script: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(FOLDER / script), *map(str, arguments)]
