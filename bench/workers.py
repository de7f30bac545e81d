"""What the second worker brings: the same build with --workers 2 and --workers 1, in turn, on 1.2 GB in three files.

The column `cores` is CPU seconds by seconds: one worker keeps to one core.

    python bench/workers.py --mirror CORPORA
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

from bench.lib.measure import add_options, alternate, folio, inputs, print_machine, print_runs, warm
from bench.lib.texts import add_text_options, natural_files, text_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="Parquet files (default: three are made)")
    parser.add_argument("--mb", type=int, default=400, help="of each file that is made (default: 400)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1], help="numbers of workers (default: 2 1)")
    add_text_options(parser)
    add_options(parser, repeat=3)
    arguments = parser.parse_args()
    files = [path.resolve() for path in arguments.files] or natural_files(
        text_folder(arguments), arguments.mirror, 3, arguments.mb
    )
    print_machine(arguments.folio_python)
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes of Parquet\n", flush=True)
    warm(files)
    options = [*inputs(files), "--tokenizer", "gpt2"]
    jobs = {f"workers {n}": folio(arguments.folio_python, *options, "--workers", str(n)) for n in arguments.workers}
    print_runs(alternate(jobs, arguments.repeat, arguments.scratch), against=f"workers {arguments.workers[0]}")


if __name__ == "__main__":
    main()
