"""Measure a build of 10 million one-line documents, which are deduplicated and split.

Deduplication and the split are the phase that compares all documents with each other. The second
table has the time of each phase of the build.

    python bench/dedup_and_split.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from statistics import median

from bench.lib.folio_build import build_job, input_options, read_build_log
from bench.lib.measure import read_once, run_alternately, select_timed
from bench.lib.options import add_run_options, add_text_options
from bench.lib.report import print_machine, print_measurements, print_table
from bench.lib.texts import make_lines_file, make_text_folder

BUILD_OPTIONS = ("--document", "line", "--tokenizer", "byte", "--no-authors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000, help="number of lines (default: 10 million)")
    parser.add_argument(
        "--duplicates", type=float, default=0.0, help="fraction of lines that repeat an earlier one (default: 0)"
    )
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    add_text_options(parser)
    add_run_options(parser, repeat=3)
    arguments = parser.parse_args()
    path = make_lines_file(make_text_folder(arguments), arguments.documents, duplicate_fraction=arguments.duplicates)
    print_machine(arguments.folio_python)
    print(f"{arguments.documents:,} documents, {path.stat().st_size:,} bytes\n", flush=True)
    read_once([path])
    job = build_job(arguments.folio_python, *input_options([path]), *BUILD_OPTIONS, "--workers", str(arguments.workers))
    measurements = run_alternately({"build": job}, arguments.repeat, arguments.scratch, read_build_log)
    print_measurements(measurements)
    print()
    timed = select_timed(measurements["build"])
    elapsed_s = [measurement.result["elapsed_s_by_phase"] for measurement in timed]
    rows = [
        (
            phase,
            " ".join(f"{by_phase[phase]:.2f}" for by_phase in elapsed_s),
            f"{median(s[phase] for s in elapsed_s):.2f}",
        )
        for phase in elapsed_s[0]
    ]
    print_table([("phase", "seconds of each run", "median"), *rows])


if __name__ == "__main__":
    main()
