"""Measure time and peak memory of builds from inputs with an unusual shape (bench/lib/odd_texts.py).

Peak memory must stay below 1 GB with two workers, whatever the input's shape and size. `contiguous`
and `one-line` are also built from the same words in Parquet, with which their time is compared.

    python bench/odd_inputs.py --mirror CORPORA
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Callable, Iterator

from bench.lib import odd_texts
from bench.lib.cases import measure_cases
from bench.lib.folio_build import build_job, input_options
from bench.lib.measure import Job
from bench.lib.options import add_case_options, add_run_options, add_text_options
from bench.lib.texts import LONG_DOCUMENT_BYTES, make_text_folder, require_mirror, write_if_missing
from bench.make_text import generate_natural

Writer = Callable[[Path, argparse.Namespace], object]


def _scaled(write: Callable[[Path, float], object]) -> Writer:
    return lambda path, arguments: write(path, arguments.scale)


def _long_texts(arguments: argparse.Namespace, mb: int) -> Iterator[bytes]:
    num_bytes = round(mb * 1_000_000 * arguments.scale)
    return generate_natural(require_mirror(arguments.mirror), num_bytes, LONG_DOCUMENT_BYTES, seed=7)


def _long_text(mb: int, end: bytes) -> Writer:
    return lambda path, arguments: odd_texts.write_long_text(path, _long_texts(arguments, mb), end)


def _long_parquet(mb: int) -> Writer:
    return lambda path, arguments: odd_texts.write_long_text_as_parquet(path, _long_texts(arguments, mb))


# The name of a case, its input, the function that writes the input, and the options of the build.
CASES: dict[str, tuple[str, Writer, tuple[str, ...]]] = {
    "shared-value": ("shared-value.parquet", _scaled(odd_texts.write_shared_value), ("--template", "{number} {text}")),
    "shared-prompt": (
        "shared-prompt.parquet", _scaled(odd_texts.write_shared_prompt), ("--template", "{prompt} {answer}"),
    ),
    "equal-lines": ("equal-lines.txt", _scaled(odd_texts.write_equal_lines), ("--document", "line")),
    "short-lines": ("short-lines.txt", _scaled(odd_texts.write_short_lines), ("--document", "line")),
    "short-lines-zstd": ("short-lines.txt.zst", _scaled(odd_texts.write_short_lines_zstd), ("--document", "line")),
    "contiguous": ("contiguous-75mb.txt", _long_text(75, b"\n\n"), ("--document", "file", "--split", "contiguous")),
    "contiguous-parquet": ("contiguous-75mb.parquet", _long_parquet(75), ()),
    "one-line": ("one-line-523mb.txt", _long_text(523, b" "), ("--document", "file", "--split", "contiguous")),
    "one-line-parquet": ("one-line-523mb.parquet", _long_parquet(523), ()),
    "many-files": ("many-files", _scaled(odd_texts.write_many_files), ()),
    "csv": ("rows-75mb.csv", _scaled(odd_texts.write_csv), ()),
    "languages": ("languages.jsonl", _scaled(odd_texts.write_languages), ("--lang-column", "lang")),
}  # fmt: skip


def make_job(case: str, arguments: argparse.Namespace) -> Job:
    """Write the input of a case if it is missing, and return the job that builds from it."""
    name, write, options = CASES[case]
    folder = make_text_folder(arguments) / f"odd-{arguments.scale:g}"
    folder.mkdir(exist_ok=True)
    path = write_if_missing(folder / name, lambda partial: write(partial, arguments))
    common = ("--tokenizer", "gpt2", "--workers", str(arguments.workers))
    return build_job(arguments.folio_python, *input_options([path]), *common, *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_options(parser, CASES)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply the size of every input, to try the bench (default: 1)"
    )
    add_text_options(parser)
    add_run_options(parser, repeat=1)
    measure_cases(make_job, parser.parse_args())


if __name__ == "__main__":
    main()
