"""Measure the speed-up by a second worker: the same build with --workers 2 and --workers 1, in turn.

The input is 1.2 GB in three files. The column `cores` is CPU seconds divided by seconds: one worker
uses one core.

    python bench/workers.py --mirror CORPORA
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from bench.lib.folio_build import build_job, input_options
from bench.lib.measure import read_once, run_alternately
from bench.lib.options import add_run_options, add_text_options
from bench.lib.report import print_machine, print_measurements
from bench.lib.texts import make_natural_files, make_text_folder

NUM_FILES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="Parquet files (default: three are made)")
    parser.add_argument("--mb", type=int, default=400, help="MB of text in each file that is made (default: 400)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1], help="numbers of workers (default: 2 1)")
    add_text_options(parser)
    add_run_options(parser, repeat=3)
    arguments = parser.parse_args()
    files = [path.resolve() for path in arguments.files]
    if not files:
        files = make_natural_files(make_text_folder(arguments), arguments.mirror, NUM_FILES, arguments.mb)
    print_machine(arguments.folio_python)
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes of Parquet\n", flush=True)
    read_once(files)
    options = [*input_options(files), "--tokenizer", "gpt2"]
    jobs = {
        f"workers {num_workers}": build_job(arguments.folio_python, *options, "--workers", str(num_workers))
        for num_workers in arguments.workers
    }
    measurements = run_alternately(jobs, arguments.repeat, arguments.scratch)
    print_measurements(measurements, relative_to=f"workers {arguments.workers[0]}")


if __name__ == "__main__":
    main()
