"""Measure how builds of short documents grow, above all the phase that compares all documents with each other.

The documents are lines of 14 random words; every tenth is a copy of another with one word replaced.
The table has the seconds of each phase and the peak memory for each number of documents, and what
`dedup_and_split` and `shard_layout` cost per document.

    python bench/dedup_and_split.py
    python bench/dedup_and_split.py --documents 10000000 20000000 40000000 --near-dedup group
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from bench.lib.folio_build import build_job, input_options, read_build_log
from bench.lib.measure import Measurement, read_once, run_job
from bench.lib.options import add_folio_options, add_texts_folder_option, parse_positive
from bench.lib.report import print_machine, print_table
from bench.lib.texts import make_short_file, make_text_folder

BUILD_OPTIONS = ("--document", "line", "--no-authors")
PHASES = ("plan", "prepare", "dedup_and_split", "shard_layout", "write_shards")
ONCE_PHASES = ("dedup_and_split", "shard_layout")  # for all documents together


def make_row(count: int, measurement: Measurement) -> list[str]:
    """Return the row of the table for the build of `count` documents."""
    seconds = measurement.result["elapsed_s_by_phase"]
    return [
        f"{count:,}",
        *(f"{value:.1f}" for value in (seconds[phase] for phase in PHASES)),
        *(f"{seconds[phase] / count * 1e6:.2f} µs" for phase in ONCE_PHASES),
        f"{measurement.peak_bytes / 1e6:,.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--documents",
        type=parse_positive,
        nargs="+",
        default=[10_000_000, 20_000_000, 40_000_000],
        help="numbers of lines (default: 10, 20 and 40 million)",
    )
    parser.add_argument("--near-dedup", choices=["drop", "group"], help="also find nearly equal documents")
    parser.add_argument("--tokenizer", default="byte", help="(default: byte)")
    parser.add_argument("--workers", type=int, default=2, help="(default: 2)")
    add_texts_folder_option(parser)
    add_folio_options(parser)
    arguments = parser.parse_args()
    near_dedup = ("--near-dedup", arguments.near_dedup) if arguments.near_dedup else ()
    options = (*BUILD_OPTIONS, "--tokenizer", arguments.tokenizer, "--workers", str(arguments.workers), *near_dedup)
    print_machine(arguments.folio_python)
    rows = []
    for count in sorted(arguments.documents):  # one after the other: the texts and builds need tens of gigabytes
        path = make_short_file(make_text_folder(arguments), count)
        read_once([path])
        job = build_job(arguments.folio_python, *input_options([path]), *options)
        measurement = run_job(job, arguments.scratch, read_build_log)
        rows.append(make_row(count, measurement))
    per_document = (f"{phase} per document" for phase in ONCE_PHASES)
    print_table([["documents", *(f"{phase} s" for phase in PHASES), *per_document, "peak MB"], *rows])


if __name__ == "__main__":
    main()
