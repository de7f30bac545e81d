"""Texts that several benches share. They are made once and kept in a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from bench.make_text import generate_natural, generate_random, write_parquet, write_text

LONG_DOCUMENT_BYTES = 10_000
LINE_BYTES = 46  # the requested size; lines have 40 bytes on average after words are cut


def make_text_folder(arguments: argparse.Namespace) -> Path:
    """Create the folder that --texts or --scratch names, and return it."""
    folder: Path = (arguments.texts or arguments.scratch / "texts").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_if_missing(path: Path, write: Callable[[Path], object]) -> Path:
    """Return `path`. If there is no such file, call `write` with a temporary path and rename the result."""
    if not path.exists():
        print(f"  making {path}", file=sys.stderr, flush=True)
        partial = path.with_name(path.name + ".partial")
        write(partial)
        partial.rename(path)
    return path


def require_mirror(mirror: Path | None) -> Path:
    """Return `mirror`, or exit if it is None."""
    if mirror is None:
        sys.exit("natural words are drawn from corpora; name their folder with --mirror or PREPROCESS_MIRROR")
    return mirror


def make_natural_files(folder: Path, mirror: Path | None, count: int, mb: int) -> list[Path]:
    """Return `count` Parquet files of `mb` MB of long documents each. All documents are different."""
    mirror = require_mirror(mirror)

    def write(seed: int) -> Callable[[Path], object]:
        return lambda path: write_parquet(
            path, generate_natural(mirror, mb * 1_000_000, LONG_DOCUMENT_BYTES, seed=seed)
        )

    return [write_if_missing(folder / f"natural-{mb}mb-{seed}.parquet", write(seed)) for seed in range(count)]


def make_random_file(folder: Path, mb: int) -> Path:
    """Return a Parquet file of `mb` MB of long documents of random words."""
    texts = generate_random(mb * 1_000_000, LONG_DOCUMENT_BYTES, seed=0)
    return write_if_missing(folder / f"random-{mb}mb.parquet", lambda path: write_parquet(path, texts))


def make_unbroken_file(folder: Path, mirror: Path | None, mb: int) -> Path:
    """Return a text file of `mb` MB of natural words separated by spaces, without a line break."""
    texts = generate_natural(require_mirror(mirror), mb * 1_000_000, LONG_DOCUMENT_BYTES, seed=1000)
    return write_if_missing(folder / f"unbroken-{mb}mb.txt", lambda path: write_text(path, texts, end=b" "))


def make_lines_file(folder: Path, count: int, *, duplicate_fraction: float) -> Path:
    """Return a text file of `count` lines; the last `duplicate_fraction` of them repeat the first ones."""
    num_duplicates = round(count * duplicate_fraction)

    def first_lines(num_lines: int) -> Iterator[bytes]:
        return islice(generate_random(count * LINE_BYTES * 2, LINE_BYTES, seed=0), num_lines)

    path = folder / f"lines-{count}-{num_duplicates}.txt"
    lines = chain(first_lines(count - num_duplicates), first_lines(num_duplicates))
    return write_if_missing(path, lambda partial: write_text(partial, lines))
