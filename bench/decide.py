"""The phase that sees every document at once: 10 million one-line documents, deduplicated and split.

python bench/decide.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from bench.lib.measure import (
    add_options,
    alternate,
    build_log,
    folio,
    inputs,
    median,
    print_machine,
    print_runs,
    print_table,
    warm,
)
from bench.lib.texts import add_text_options, lines_file, text_folder

BUILD = ("--document", "line", "--tokenizer", "byte", "--no-authors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000, help="(default: 10 million)")
    parser.add_argument(
        "--duplicates", type=float, default=0.0, help="share of lines that have come before (default: 0)"
    )
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    add_text_options(parser)
    add_options(parser, repeat=3)
    arguments = parser.parse_args()
    path = lines_file(text_folder(arguments), arguments.documents, duplicates=arguments.duplicates)
    print_machine(arguments.folio_python)
    print(f"{arguments.documents:,} documents, {path.stat().st_size:,} bytes\n", flush=True)
    warm([path])
    build = folio(arguments.folio_python, *inputs([path]), *BUILD, "--workers", str(arguments.workers))
    runs = alternate({"build": build}, arguments.repeat, arguments.scratch, build_log)
    print_runs(runs)
    print()
    logs = [run.found["elapsed_s_by_phase"] for run in runs["build"]]
    rows = [
        (phase, " ".join(f"{log[phase]:.2f}" for log in logs), f"{median([log[phase] for log in logs]):.2f}")
        for phase in logs[0]
    ]
    print_table([("phase", "seconds of each run", "median"), *rows])


if __name__ == "__main__":
    main()
