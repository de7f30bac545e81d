"""Measure builds of the same documents from each format: Parquet, JSON Lines, JSON, CSV, text, and compressed files.

A build must not take more than twice the time of the fastest format. The formats that keep the
documents apart must also give the same tokens; `passage` and `contiguous` cut the text elsewhere.

    python bench/formats.py --mirror CORPORA
    python bench/formats.py --mb 20 --cases parquet csv
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import csv
import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from backports import zstd

from bench.lib.folio_build import BUILD_NAME, build_job, input_options
from bench.lib.measure import Measurement, read_once, run_alternately, select_timed
from bench.lib.options import add_case_options, add_run_options, add_text_options
from bench.lib.report import print_machine, print_table
from bench.lib.texts import make_text_folder, require_mirror, write_if_missing
from bench.make_text import generate_natural, write_parquet

DOCUMENT_BYTES = 1_000
MAX_SLOWDOWN = 2.0  # compared with the fastest format
Write = Callable[[Path, list[str]], object]


def write_json_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))


def write_json(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts], ensure_ascii=False))


def write_csv(path: Path, texts: list[str]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])


def write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(f"{text}\n" for text in texts))


def write_paragraphs(path: Path, texts: list[str]) -> None:
    path.write_text("".join(f"{text}\n\n" for text in texts))


def write_gzip(path: Path, texts: list[str]) -> None:
    write_json_lines(path, texts)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_zstd(path: Path, texts: list[str]) -> None:
    write_json_lines(path, texts)
    path.write_bytes(zstd.compress(path.read_bytes()))


@dataclass(frozen=True)
class Case:
    """A format: the name of its file, how it is written, and the options of the build."""

    file_name: str
    write: Write
    options: tuple[str, ...] = ()
    keeps_documents: bool = True


CASES = {
    "parquet": Case("documents.parquet", lambda path, texts: write_parquet(path, iter(map(str.encode, texts)))),
    "jsonl": Case("documents.jsonl", write_json_lines),
    "jsonl.zst": Case("documents.jsonl.zst", write_zstd),
    "jsonl.gz": Case("documents.jsonl.gz", write_gzip),
    "json": Case("documents.json", write_json),
    "csv": Case("documents.csv", write_csv),
    "line": Case("lines.txt", write_lines, ("--document", "line")),
    "paragraph": Case("paragraphs.txt", write_paragraphs, ("--document", "paragraph")),
    "passage": Case("paragraphs.txt", write_paragraphs, ("--document", "passage"), keeps_documents=False),
    "contiguous": Case("paragraphs.txt", write_paragraphs, ("--split", "contiguous"), keeps_documents=False),
}


def make_inputs(folder: Path, names: list[str], mirror: Path, mb: int) -> dict[str, Path]:
    """Return the file of each case in `names`. All are made from the same documents without line breaks."""
    texts: list[str] = []
    paths = {}
    for name in names:
        case = CASES[name]

        def write(path: Path, case: Case = case) -> None:
            if not texts:
                documents = generate_natural(mirror, mb * 1_000_000, DOCUMENT_BYTES, seed=7)
                texts.extend(" ".join(text.decode().split()) for text in documents)
            case.write(path, texts)

        target = folder / f"formats-{mb}mb" / case.file_name
        target.parent.mkdir(exist_ok=True)
        paths[name] = write_if_missing(target, write)
    return paths


def hash_tokens(folder: Path) -> str:
    """Return the SHA-256 of the tokens of the build that a job made in `folder`, in order."""
    digest = hashlib.sha256()
    for path in sorted((folder / BUILD_NAME).glob("*.bin")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_equal_tokens(measurements: dict[str, list[Measurement]]) -> None:
    """Exit if formats that keep the documents apart gave different tokens."""
    hashes = {
        name: {measurement.result for measurement in of_case}
        for name, of_case in measurements.items()
        if CASES[name].keeps_documents
    }
    if len(set.union(set(), *hashes.values())) > 1:
        sys.exit(f"the formats gave different tokens: {hashes}")
    print(f"\nsame tokens: {', '.join(hashes)}")


def print_rates(measurements: dict[str, list[Measurement]], mb: int) -> None:
    """Print a row per format: seconds, CPU seconds, MB of text per second, and the time relative to the fastest."""
    seconds = {name: median(m.elapsed_s for m in select_timed(of_case)) for name, of_case in measurements.items()}
    cpu = {name: median(m.cpu_s for m in select_timed(of_case)) for name, of_case in measurements.items()}
    rows = [["format", "seconds of each run", "median", "CPU s", "MB/s", "÷ fastest", "CPU ÷ least", "peak MB"]]
    for name, of_case in measurements.items():
        rows.append(
            [
                name,
                " ".join(f"{m.elapsed_s:.2f}" for m in select_timed(of_case)),
                f"{seconds[name]:.2f}",
                f"{cpu[name]:.2f}",
                f"{mb / seconds[name]:.0f}",
                f"{seconds[name] / min(seconds.values()):.2f}",
                f"{cpu[name] / min(cpu.values()):.2f}",
                f"{max(m.peak_bytes for m in of_case) / 1e6:,.0f}",
            ]
        )
    print_table(rows)
    slow = [name for name, value in seconds.items() if value > MAX_SLOWDOWN * min(seconds.values())]
    print(f"\nslower than {1 / MAX_SLOWDOWN:.0%} of the fastest: {', '.join(slow) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=150, help="MB of text (default: 150)")
    add_case_options(parser, CASES)
    add_text_options(parser)
    add_run_options(parser, repeat=3)
    arguments = parser.parse_args()
    paths = make_inputs(make_text_folder(arguments), arguments.cases, require_mirror(arguments.mirror), arguments.mb)
    print_machine(arguments.folio_python)
    read_once(list(paths.values()))
    common = ("--tokenizer", "gpt2", "--workers", str(arguments.workers))
    jobs = {
        name: build_job(arguments.folio_python, *input_options([path]), *CASES[name].options, *common)
        for name, path in paths.items()
    }
    measurements = run_alternately(jobs, arguments.repeat, arguments.scratch, hash_tokens)
    check_equal_tokens(measurements)
    print_rates(measurements, arguments.mb)


if __name__ == "__main__":
    main()
