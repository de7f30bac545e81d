"""The peers as jobs: each a fresh process of the Python that runs the bench, working in a fresh folder."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.lib.forms import Forms
from bench.lib.measure import Job
from bench.lib.vocabulary import Vocabulary

HERE = Path(__file__).resolve().parent
PEERS = ("nanogpt", "nanogpt-columns", "datatrove", "gigatoken", "gigatoken-parquet")


def nanogpt(forms: Forms, *options: str) -> Job:
    return lambda folder: _script("nanogpt.py", forms.parquet, "--output", folder, *options)


def datatrove(forms: Forms, vocabulary: Vocabulary) -> Job:
    return lambda folder: _script(
        "datatrove.py", forms.halves, "--tokenizer", vocabulary.tokenizer_json, "--output", folder
    )


def gigatoken(files: list[Path], vocabulary: Vocabulary, *, output: str | None = None) -> Job:
    def command(folder: Path) -> list[str]:
        kept = ["--output", str(folder / output)] if output else []
        return _script("gigatoken.py", *files, "--ranks", vocabulary.rank_file, *kept)

    return command


def job(name: str, forms: Forms, vocabulary: Vocabulary) -> Job:
    """The peer `name` as its time is taken."""
    if name == "nanogpt":
        return nanogpt(forms)
    if name == "nanogpt-columns":
        return nanogpt(forms, "--column-at-once")
    if name == "datatrove":
        return datatrove(forms, vocabulary)
    return gigatoken([forms.parquet if name == "gigatoken-parquet" else forms.text], vocabulary)


def _script(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, str(HERE / name), *map(str, arguments)]
