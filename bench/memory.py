"""Measure the peak memory of builds from large or unusual texts. It must not grow with the text.

natural-small   400 MB of long documents
natural-large   4 GB of long documents, in ten files
random          400 MB of random words: nearly every word is new to the tokenizer
unbroken        one text file of 2 GB without a line break

    python bench/memory.py --mirror CORPORA
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from bench.lib.folio_build import build_job, input_options
from bench.lib.measure import Job, read_once, run_alternately
from bench.lib.options import add_case_options, add_run_options, add_text_options
from bench.lib.report import print_machine, print_measurements
from bench.lib.texts import make_natural_files, make_random_file, make_text_folder, make_unbroken_file

CASES = ("natural-small", "natural-large", "random", "unbroken")


def make_files(case: str, arguments: argparse.Namespace) -> list[Path]:
    """Return the input files of a case, and make them if necessary."""
    folder, mb = make_text_folder(arguments), max(1, round(400 * arguments.scale))
    if case == "random":
        return [make_random_file(folder, mb)]
    if case == "unbroken":
        return [make_unbroken_file(folder, arguments.mirror, 5 * mb)]
    return make_natural_files(folder, arguments.mirror, 1 if case == "natural-small" else 10, mb)


def make_job(case: str, files: list[Path], arguments: argparse.Namespace) -> Job:
    """Return the job that builds from `files`."""
    options = ["--tokenizer", "gpt2", "--workers", str(arguments.workers)]
    if case == "unbroken" and arguments.scale < 1:
        options += ["--split", "contiguous"]  # a small text is one document, which the default split rejects
    return build_job(arguments.folio_python, *input_options(files), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_case_options(parser, CASES)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply the size of every text, to try the bench (default: 1)"
    )
    add_text_options(parser)
    add_run_options(parser, repeat=1)
    arguments = parser.parse_args()
    files_by_case = {case: make_files(case, arguments) for case in arguments.cases}
    print_machine(arguments.folio_python)
    for case, files in files_by_case.items():
        print(f"{case}: {len(files)} files, {sum(path.stat().st_size for path in files):,} bytes on disk")
        read_once(files)
    print()
    jobs = {case: make_job(case, files, arguments) for case, files in files_by_case.items()}
    print_measurements(run_alternately(jobs, arguments.repeat, arguments.scratch))


if __name__ == "__main__":
    main()
