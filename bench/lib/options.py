"""Command-line options that several benches share."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench.lib.measure import ROOT


def parse_path(text: str) -> Path:
    """Return `text` as an absolute path, because commands run in another folder than the bench.

    Symbolic links are kept: the Python of a virtual environment is one.
    """
    return Path(text).absolute()


def parse_positive(text: str) -> int:
    """Return `text` as a whole number of at least 1."""
    return _parse_whole_number(text, min_value=1)


def parse_count(text: str) -> int:
    """Return `text` as a whole number of at least 0."""
    return _parse_whole_number(text, min_value=0)


def _parse_whole_number(text: str, *, min_value: int) -> int:
    if not text.isdecimal() or int(text) < min_value:
        raise argparse.ArgumentTypeError(f"expected a whole number that is {min_value} or more, got {text!r}")
    return int(text)


def add_run_options(parser: argparse.ArgumentParser, *, repeat: int) -> None:
    """Add the options of every bench that runs jobs; `repeat` is the default number of timed runs."""
    parser.add_argument(
        "--repeat",
        type=parse_count,
        default=repeat,
        help=f"timed runs of each job, in turn, after that which measures memory; 0: time that (default: {repeat})",
    )
    parser.add_argument(
        "--folio-python",
        type=parse_path,
        default=ROOT / ".venv/bin/python",
        help="the Python that has Folio (default: .venv/bin/python)",
    )
    add_scratch_option(parser)


def add_scratch_option(parser: argparse.ArgumentParser) -> None:
    default = Path(tempfile.gettempdir()) / "folio-bench"
    parser.add_argument(
        "--scratch", type=parse_path, default=default, help=f"folder for temporary files (default: {default})"
    )


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every bench that makes its texts (see texts.py)."""
    parser.add_argument(
        "--mirror",
        type=Path,
        default=os.environ.get("PREPROCESS_MIRROR"),
        help="folder of corpora from which words are drawn (default: PREPROCESS_MIRROR)",
    )
    add_texts_folder_option(parser)


def add_texts_folder_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--texts", type=Path, help="folder in which the texts are kept (default: texts/ in the scratch folder)"
    )


def add_case_options(parser: argparse.ArgumentParser, cases: Iterable[str]) -> None:
    """Add the options of every bench that builds several inputs, its `cases`."""
    names = list(cases)
    parser.add_argument("--cases", nargs="+", choices=names, default=names, help="(default: all)")
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
