"""Texts that several benches share: made once, kept in a folder, found there the next time."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from bench.make_text import natural, random, write_parquet, write_text

LONG_BYTES = 10_000
LINE_BYTES = 46  # 40 on average, once the words have been cut


def add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mirror", type=Path, default=os.environ.get("PREPROCESS_MIRROR"), help="folder of corpora to take words from"
    )
    parser.add_argument(
        "--texts", type=Path, help="folder where the texts are kept (default: texts/ in the scratch folder)"
    )


def text_folder(arguments: argparse.Namespace) -> Path:
    folder: Path = (arguments.texts or arguments.scratch / "texts").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(path: Path, write: Callable[[Path], object]) -> Path:
    """`path`, written where it is missing; whole or not there."""
    if not path.exists():
        print(f"  making {path}", file=sys.stderr, flush=True)
        partial = path.with_name(path.name + ".partial")
        write(partial)
        partial.rename(path)
    return path


def natural_files(folder: Path, mirror: Path | None, count: int, mb: int) -> list[Path]:
    """`count` Parquet files of `mb` MB of long documents each, no document twice."""
    if mirror is None:
        sys.exit("natural words come from corpora: name their folder with --mirror or PREPROCESS_MIRROR")

    def write(seed: int) -> Callable[[Path], object]:
        return lambda path: write_parquet(path, natural(mirror, mb * 1_000_000, LONG_BYTES, seed=seed))

    return [kept(folder / f"natural-{mb}mb-{seed}.parquet", write(seed)) for seed in range(count)]


def random_file(folder: Path, mb: int) -> Path:
    """Long documents of random words."""
    texts = random(mb * 1_000_000, LONG_BYTES, seed=0)
    return kept(folder / f"random-{mb}mb.parquet", lambda path: write_parquet(path, texts))


def unbroken_file(folder: Path, mirror: Path | None, mb: int) -> Path:
    """A text file of natural words without a line break: spaces are all that parts them."""
    if mirror is None:
        sys.exit("natural words come from corpora: name their folder with --mirror or PREPROCESS_MIRROR")
    texts = natural(mirror, mb * 1_000_000, LONG_BYTES, seed=1000)
    return kept(folder / f"unbroken-{mb}mb.txt", lambda path: write_text(path, texts, end=b" "))


def lines_file(folder: Path, count: int, *, duplicates: float) -> Path:
    """A text file of `count` lines, the last `duplicates` of them the first ones again."""
    repeated = round(count * duplicates)

    def lines(wanted: int) -> Iterator[bytes]:
        return islice(random(count * LINE_BYTES * 2, LINE_BYTES, seed=0), wanted)

    name = f"lines-{count}-{repeated}.txt"
    return kept(folder / name, lambda path: write_text(path, chain(lines(count - repeated), lines(repeated))))
