"""Peak memory of builds whose texts are large or unkind: it must not grow with the text.

natural-small   400 MB of long documents
natural-large   4 GB of them, in ten files
random          400 MB of random words: nearly every word is a new one to the tokenizer
unbroken        one text file of 2 GB without a line break

python bench/memory.py --mirror CORPORA
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from bench.lib.measure import Job, add_options, alternate, folio, inputs, print_machine, print_runs, warm
from bench.lib.texts import add_text_options, natural_files, random_file, text_folder, unbroken_file

CASES = ("natural-small", "natural-large", "random", "unbroken")


def files_of(case: str, arguments: argparse.Namespace) -> list[Path]:
    folder, mb = text_folder(arguments), max(1, round(400 * arguments.scale))
    if case == "random":
        return [random_file(folder, mb)]
    if case == "unbroken":
        return [unbroken_file(folder, arguments.mirror, 5 * mb)]
    return natural_files(folder, arguments.mirror, 1 if case == "natural-small" else 10, mb)


def job(case: str, files: list[Path], arguments: argparse.Namespace) -> Job:
    options = ["--tokenizer", "gpt2", "--workers", str(arguments.workers)]
    if (
        case == "unbroken" and arguments.scale < 1
    ):  # so little is a single document, which the default split does not take
        options += ["--split", "contiguous"]
    return folio(arguments.folio_python, *inputs(files), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="make every text so much smaller, to try the bench (default: 1)"
    )
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    add_text_options(parser)
    add_options(parser, repeat=1)
    arguments = parser.parse_args()
    files = {case: files_of(case, arguments) for case in arguments.cases}
    print_machine(arguments.folio_python)
    for case, paths in files.items():
        print(f"{case}: {len(paths)} files, {sum(path.stat().st_size for path in paths):,} bytes on disk")
        warm(paths)
    print()
    print_runs(
        alternate(
            {case: job(case, paths, arguments) for case, paths in files.items()}, arguments.repeat, arguments.scratch
        )
    )


if __name__ == "__main__":
    main()
