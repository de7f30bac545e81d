"""Texts that several benches share. They are made once and kept in a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.make_text import generate_natural, generate_random, write_parquet, write_text

LONG_DOCUMENT_BYTES = 10_000
SHORT_WORDS, SHORT_VOCABULARY = 14, 20_000  # of a short document, and of all
SHORT_CHUNK = 1_000_000  # documents made at once


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


def make_short_file(folder: Path, count: int) -> Path:
    """Return a text file of `count` lines of 14 random words. Every tenth is a copy with one word replaced."""
    return write_if_missing(folder / f"short-{count}.txt", lambda partial: _write_short(partial, count))


def _write_short(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, SHORT_VOCABULARY)
    letters = "".join(map(chr, rng.integers(ord("a"), ord("z") + 1, int(lengths.sum())).tolist()))
    ends = np.cumsum(lengths).tolist()
    words = pa.array([letters[begin:end] for begin, end in zip([0, *ends], ends, strict=False)])
    with open(path, "wb") as file:
        for first in range(0, count, SHORT_CHUNK):
            num_documents = min(SHORT_CHUNK, count - first)
            chosen = rng.integers(0, SHORT_VOCABULARY, (num_documents, SHORT_WORDS))
            copies = np.arange(10, num_documents, 10)
            chosen[copies] = chosen[copies - rng.integers(1, 10, len(copies))]
            chosen[copies, rng.integers(0, SHORT_WORDS, len(copies))] = rng.integers(0, SHORT_VOCABULARY, len(copies))
            lists = pa.ListArray.from_arrays(
                np.arange(0, chosen.size + 1, SHORT_WORDS, dtype=np.int32), words.take(pa.array(chosen.reshape(-1)))
            )
            lines = pc.binary_join(lists, " ").to_pylist()
            file.write("\n".join([*lines, ""]).encode())
