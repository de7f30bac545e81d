"""Compare Folio with the baselines: from Parquet to tokens, from the start of the process to its end.

First, on a part of each text, check that all tools produce the same tokens. Cleaning, deduplication
and control tokens are off for this. Each document of Folio's build must be tiktoken's ids and an
end-of-text id, and the baselines' documents must equal Folio's. Then measure times with Folio's
default settings, which include cleaning, deduplication, split and hashes.

    python bench/whole_job.py long.parquet short.parquet --baselines gigatoken,datatrove,nanogpt --mb 80 --repeat 3
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bench.baselines.jobs import BASELINES, datatrove_job, gigatoken_job, make_job, nanogpt_job
from bench.lib.folio_build import BUILD_NAME, build_job, input_options
from bench.lib.measure import fresh_folder, read_once, run_alternately, run_job
from bench.lib.options import add_run_options, parse_path
from bench.lib.report import print_machine, print_measurements
from bench.lib.text_formats import (
    TextFiles,
    read_datatrove,
    read_documents,
    read_folio,
    read_gigatoken,
    read_nanogpt,
    write_text_files,
)
from bench.lib.vocabulary import Vocabulary, default_cache, write_vocabulary

ONLY_ENCODE = ("--tokenizer", "gpt2", "--clean", "none", "--no-dedup", "--no-authors", "--workers", "2")


def encode_with_tiktoken(texts: list[str]) -> tuple[list[np.ndarray], int]:
    """Return each text's ids followed by the end-of-text id, and that id."""
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    eot_id = encoding.eot_token
    return [np.array([*encoding.encode_ordinary(text), eot_id], np.uint16) for text in texts], eot_id


def check_equal(
    name: str, documents: Iterable[np.ndarray], expected: Iterable[np.ndarray], *, ordered: bool = True
) -> None:
    """Exit unless the documents have the same tokens, in the same order if `ordered`."""
    found_tokens, expected_tokens = (
        [tokens.astype("<u2").tobytes() for tokens in side] for side in (documents, expected)
    )
    if not ordered:
        found_tokens, expected_tokens = sorted(found_tokens), sorted(expected_tokens)
    if len(found_tokens) != len(expected_tokens):
        sys.exit(f"{name}: expected {len(expected_tokens):,} documents, got {len(found_tokens):,}")
    if num_different := sum(a != b for a, b in zip(found_tokens, expected_tokens, strict=True)):
        sys.exit(f"{name}: {num_different:,} of {len(found_tokens):,} documents have different tokens")
    num_tokens = sum(map(len, found_tokens)) // 2
    order = "in order" if ordered else "in any order"
    print(f"same tokens: {name}, {len(found_tokens):,} documents, {num_tokens:,} tokens, {order}", flush=True)


@dataclass(frozen=True)
class Comparison:
    """One text and the tools that are compared on it."""

    baselines: list[str]
    vocabulary: Vocabulary
    folio_python: Path
    workers: int
    scratch: Path

    def check_tokens(self, files: TextFiles) -> None:
        """Exit unless Folio and the baselines produce the same tokens from `files`."""
        expected, eot_id = encode_with_tiktoken(read_documents(files.parquet))
        check_equal("Folio = tiktoken", self._build(*input_options([files.parquet])), expected)
        if "nanogpt" in self.baselines:
            documents = run_job(nanogpt_job(files), self.scratch, lambda folder: read_nanogpt(folder, eot_id)).result
            check_equal("nanogpt = Folio", documents, expected, ordered=False)
        if "datatrove" in self.baselines:
            documents = run_job(datatrove_job(files, self.vocabulary), self.scratch, read_datatrove).result
            check_equal("datatrove = Folio", documents, expected, ordered=False)
        if "gigatoken-parquet" in self.baselines:
            check_equal("gigatoken-parquet = Folio", self._encode_with_gigatoken([files.parquet], eot_id), expected)
        if "gigatoken" in self.baselines:
            # For gigatoken a text file is one document, so Folio builds from the same text files.
            inputs = list(files.text_halves)
            expected_from_text = self._build(*input_options(inputs), "--document", "file", "--val-fraction", "0.5")
            documents = self._encode_with_gigatoken(inputs, eot_id)
            check_equal("gigatoken = Folio, from text files", documents, expected_from_text)

    def _build(self, *options: str) -> list[np.ndarray]:
        job = build_job(self.folio_python, *options, *ONLY_ENCODE)
        documents = run_job(job, self.scratch, lambda folder: read_folio(folder / BUILD_NAME)).result
        return list(documents.values())

    def _encode_with_gigatoken(self, inputs: list[Path], eot_id: int) -> list[np.ndarray]:
        job = gigatoken_job(inputs, self.vocabulary, output="ids.npz")
        documents = run_job(job, self.scratch, lambda folder: read_gigatoken(folder / "ids.npz")).result
        return [np.append(ids, eot_id) for ids in documents]

    def measure_times(self, files: TextFiles, *, repeat: int) -> None:
        """Run Folio and the baselines on `files` in turn, and print their times."""
        options = [*input_options([files.parquet]), "--tokenizer", "gpt2", "--workers", str(self.workers)]
        jobs = {"folio": build_job(self.folio_python, *options)}
        jobs |= {name: make_job(name, files, self.vocabulary) for name in self.baselines}
        read_once(files.files)
        parquet_bytes = files.parquet.stat().st_size
        print(f"\n{files.num_documents:,} documents, {files.num_bytes:,} bytes of text, {parquet_bytes:,} of Parquet\n")
        print_measurements(run_alternately(jobs, repeat, self.scratch), relative_to="folio")


def parse_baselines(text: str) -> list[str]:
    """Return the names in a list separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in BASELINES]:
        raise argparse.ArgumentTypeError(f"no baseline {unknown[0]!r}; choose from {', '.join(BASELINES)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+", help="Parquet files with a column `text`")
    parser.add_argument(
        "--baselines",
        type=parse_baselines,
        default=list(BASELINES),
        help=f"some of {','.join(BASELINES)} (default: all)",
    )
    parser.add_argument("--mb", type=float, help="use the first MB of each text only (default: all)")
    parser.add_argument("--proof-mb", type=float, default=5, help="MB to compare tokens on; 0: none (default: 5)")
    parser.add_argument("--workers", type=int, default=2, help="workers of Folio (default: 2)")
    parser.add_argument(
        "--vocabulary",
        type=parse_path,
        default=default_cache(),
        help="tiktoken's cache folder with GPT-2's files (default: TIKTOKEN_CACHE_DIR, or Folio's cache)",
    )
    add_run_options(parser, repeat=3)
    arguments = parser.parse_args()
    print_machine(arguments.folio_python)
    for text in arguments.texts:
        print(f"\n## {text.name}\n", flush=True)
        with fresh_folder(arguments.scratch) as folder:
            comparison = Comparison(
                arguments.baselines,
                write_vocabulary(arguments.vocabulary, folder / "vocabulary"),
                arguments.folio_python,
                arguments.workers,
                arguments.scratch,
            )
            if arguments.proof_mb:
                max_bytes = round(arguments.proof_mb * 1e6)
                comparison.check_tokens(write_text_files(text, folder / "proof", max_bytes=max_bytes))
            max_bytes = None if arguments.mb is None else round(arguments.mb * 1e6)
            files = write_text_files(text, folder / "text", max_bytes=max_bytes)
            comparison.measure_times(files, repeat=arguments.repeat)


if __name__ == "__main__":
    main()
