"""Measure builds from many small files, and from one file with the same documents.

A folder or a zip archive of 20,000 files of one line must take at most twice the time of one file
with 20,000 lines.

    python bench/small_files.py
    python bench/small_files.py --files 200000 --cases text-folder text-file
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice

from bench.lib.cases import measure_cases
from bench.lib.folio_build import build_job, input_options
from bench.lib.measure import Job
from bench.lib.options import add_case_options, add_run_options, add_texts_folder_option, parse_positive
from bench.lib.texts import make_text_folder, write_if_missing
from bench.make_text import generate_random

LINE_BYTES = 66  # the requested size; lines have about 60 bytes after words are cut
FILES_PER_FOLDER = 1_000


def _iter_lines(suffix: str, count: int) -> Iterator[bytes]:
    for line in islice(generate_random(count * LINE_BYTES * 2, LINE_BYTES, seed=5), count):
        yield (json.dumps({"text": line.decode()}).encode() if suffix == ".jsonl" else line) + b"\n"


def _iter_files(suffix: str, count: int) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(_iter_lines(suffix, count)):
        yield f"{number // FILES_PER_FOLDER:03d}/{number:06d}{suffix}", line


def _write_file(path: Path, suffix: str, count: int) -> None:
    with open(path, "wb") as file:
        file.writelines(_iter_lines(suffix, count))


def _write_folder(path: Path, suffix: str, count: int) -> None:
    for name, line in _iter_files(suffix, count):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(line)


def _write_zip(path: Path, suffix: str, count: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, line in _iter_files(suffix, count):
            archive.writestr(name, line)


# The name of a case, the function that writes its input, the suffix of the files, and that of the input.
CASES: dict[str, tuple[Callable[[Path, str, int], None], str, str]] = {
    "text-file": (_write_file, ".txt", ".txt"),
    "text-folder": (_write_folder, ".txt", ""),
    "text-zip": (_write_zip, ".txt", ".zip"),
    "jsonl-file": (_write_file, ".jsonl", ".jsonl"),
    "jsonl-folder": (_write_folder, ".jsonl", ""),
    "jsonl-zip": (_write_zip, ".jsonl", ".zip"),
}


def make_job(case: str, arguments: argparse.Namespace) -> Job:
    """Write the input of a case if it is missing, and return the job that builds from it."""
    write, suffix, input_suffix = CASES[case]
    path = make_text_folder(arguments) / f"small-{case}-{arguments.files}{input_suffix}"
    write_if_missing(path, lambda partial: write(partial, suffix, arguments.files))
    document = ("--document", "line") if suffix == ".txt" else ()
    options = ("--tokenizer", "gpt2", "--workers", str(arguments.workers), *document)
    return build_job(arguments.folio_python, *input_options([path]), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_options(parser, CASES)
    parser.add_argument("--files", type=parse_positive, default=20_000, help="in each input (default: 20000)")
    add_texts_folder_option(parser)
    add_run_options(parser, repeat=5)
    measure_cases(make_job, parser.parse_args())


if __name__ == "__main__":
    main()
