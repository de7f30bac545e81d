"""Measure how fast batches of 32 × 256 tokens reach a training loop.

Compared are the datasets of preprocess/shards/torch_dataset.py under DataLoader, the trainer's
reader (train/data/batches.py), and a baseline: Hugging Face `datasets`, which streams the same text
files through GPT2TokenizerFast. The baseline tokenizes again in each epoch, whereas Folio tokenizes
once, and it does not shuffle. `--baseline-python` names a Python that has datasets, psutil, torch
and transformers. Each job is a fresh process that counts tokens for `--seconds` after its first
batches.

    python bench/loader.py --mirror CORPORA --baseline-python PYTHON
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator
from itertools import chain
from statistics import median
from time import perf_counter
from typing import Any

from bench.lib.folio_build import BUILD_NAME, build_job, input_options
from bench.lib.measure import Job, Measurement, fresh_folder, measure, run_alternately, select_timed
from bench.lib.options import add_run_options, add_text_options, parse_path
from bench.lib.report import print_machine, print_table
from bench.lib.texts import LONG_DOCUMENT_BYTES, make_text_folder, require_mirror, write_if_missing
from bench.lib.vocabulary import default_cache, write_vocabulary
from bench.make_text import generate_natural, generate_random, write_text

BATCH_SIZE, BLOCK_SIZE = 32, 256
WARM_UP_BATCHES = 16  # more than the workers of DataLoader prefetch
# Lines that the baseline tokenizes at once, about 0.1 million tokens. With its default of 1,000 lines a run would end
# before the second call.
BASELINE_LINES = 50
NUM_FILES = 2  # `datasets` does not divide a file among workers, so each worker needs one
RESULT_FILE = "result.json"
TRAINER, BASELINE = "train/data/batches.py", "datasets, streaming"
READERS = [("TokenWindows", 0), ("TokenWindows", 2), ("ShuffledWindows", 0), ("ShuffledWindows", 2), (TRAINER, 0)]
SMOKE_READERS = [("TokenWindows", 2), ("ShuffledWindows", 2)]


def folio_batches(reader: str, build: str, num_workers: int) -> Iterator[Any]:
    """Yield batches of a dataset under DataLoader without end: (inputs, targets), (32, 256) each."""
    from preprocess.shards.torch_dataset import ShuffledWindows, TokenWindows, make_loader

    types = {"TokenWindows": TokenWindows, "ShuffledWindows": ShuffledWindows}
    dataset = types[reader](build, block_size=BLOCK_SIZE)
    loader = make_loader(dataset, batch_size=BATCH_SIZE, num_workers=num_workers, drop_last=True)
    while True:
        yield from loader


def trainer_batches(build: str) -> Iterator[Any]:
    """Yield the trainer's batches without end."""
    import torch

    from train.config import Config
    from train.data.batches import TrainingData
    from train.data.builds import open_builds

    config = Config(data=build, out_dir="none", block_size=BLOCK_SIZE, batch_size=BATCH_SIZE)
    data = TrainingData(open_builds(build), config, device=torch.device("cpu"))
    first_sample = 0
    while True:
        yield data.batch(first_sample, BATCH_SIZE)
        first_sample += BATCH_SIZE


def baseline_batches(tokenizer_json: str, files: list[str], num_workers: int) -> Iterator[Any]:
    """Yield the baseline's batches without end."""
    import torch
    from datasets import load_dataset
    from torch.utils.data import DataLoader
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast(tokenizer_file=tokenizer_json)

    def to_windows(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        lines = tokenizer(rows["text"])["input_ids"]
        ids = list(chain.from_iterable([*line, tokenizer.eos_token_id] for line in lines))
        starts = range(0, len(ids) - BLOCK_SIZE, BLOCK_SIZE)
        return {"x": [ids[s : s + BLOCK_SIZE] for s in starts], "y": [ids[s + 1 : s + BLOCK_SIZE + 1] for s in starts]}

    # The format "torch" of `datasets` makes a tensor of each token, which limits the loop to 0.04 million tokens/s.
    def collate(rows: list[dict[str, list[int]]]) -> list[torch.Tensor]:
        return [torch.tensor([row[name] for row in rows]) for name in ("x", "y")]

    lines = load_dataset("text", data_files=files, split="train", streaming=True)
    windows = lines.map(to_windows, batched=True, batch_size=BASELINE_LINES, remove_columns=["text"])
    while True:
        yield from DataLoader(windows, BATCH_SIZE, num_workers=num_workers, drop_last=True, collate_fn=collate)


def count_tokens(batches: Iterator[Any], seconds: float) -> dict[str, float]:
    """Return the number of input tokens that arrive in at least `seconds`, and the exact time."""
    for _ in range(WARM_UP_BATCHES):
        assert next(batches)[0].shape == (BATCH_SIZE, BLOCK_SIZE)
    num_tokens, begin = 0, perf_counter()
    while (elapsed_s := perf_counter() - begin) < seconds:
        num_tokens += next(batches)[0].numel()
    return {"tokens": num_tokens, "elapsed_s": elapsed_s}


def run_worker(reader: str, num_workers: str, seconds: str, output: str, *inputs: str) -> None:
    """Count the tokens of one reader in this process.

    `inputs`: the build, or for the baseline the tokenizer and the text files.
    """
    if reader == TRAINER:
        batches = trainer_batches(inputs[0])
    elif reader == BASELINE:
        batches = baseline_batches(inputs[0], list(inputs[1:]), int(num_workers))
    else:
        batches = folio_batches(reader, inputs[0], int(num_workers))
    Path(output, RESULT_FILE).write_text(json.dumps(count_tokens(batches, float(seconds))))


def reader_job(python: Path, reader: str, num_workers: int, seconds: float, inputs: list[str]) -> Job:
    """Return a job that calls `run_worker` in a fresh process of `python`."""
    command = [str(python), str(Path(__file__).resolve()), "--worker", reader, str(num_workers), str(seconds)]
    return lambda folder: [*command, str(folder), *inputs]


def make_texts(arguments: argparse.Namespace) -> list[Path]:
    """Return text files with a document per line, and make them if necessary."""
    if not arguments.smoke:
        require_mirror(arguments.mirror)
    folder, file_bytes = make_text_folder(arguments), arguments.mb * 1_000_000 // NUM_FILES

    def write(number: int) -> Callable[[Path], object]:
        if arguments.smoke:
            return lambda path: write_text(path, generate_random(200_000, 400, seed=number))
        return lambda path: write_text(
            path, generate_natural(arguments.mirror, file_bytes, LONG_DOCUMENT_BYTES, seed=number)
        )

    prefix = "smoke" if arguments.smoke else f"natural-{file_bytes}"
    return [write_if_missing(folder / f"{prefix}-{number}.txt", write(number)) for number in range(NUM_FILES)]


def make_jobs(arguments: argparse.Namespace, build: Path, files: list[Path], scratch: Path) -> dict[str, Job]:
    """Return the jobs by name: the reader, a vertical bar, and the number of workers."""
    jobs = {
        f"{reader}|{n}": reader_job(arguments.folio_python, reader, n, arguments.seconds, [str(build)])
        for reader, n in (SMOKE_READERS if arguments.smoke else READERS)
    }
    if arguments.baseline_python and has_baseline(arguments.baseline_python):
        tokenizer = write_vocabulary(default_cache(), scratch / "vocabulary").tokenizer_json
        inputs = [str(tokenizer), *map(str, files)]
        jobs |= {
            f"{BASELINE}|{n}": reader_job(arguments.baseline_python, BASELINE, n, arguments.seconds, inputs)
            for n in (0, 2)
        }
    return jobs


def has_baseline(python: Path) -> bool:
    """Return whether `python` has the libraries of the baseline; if not, print which one is missing."""
    command = [str(python), "-c", "import datasets, psutil, torch, transformers"]
    imports = subprocess.run(command, capture_output=True, text=True)
    if imports.returncode:
        print(f"no baseline: {imports.stderr.strip().splitlines()[-1]}")
    return not imports.returncode


def print_rates(measurements: dict[str, list[Measurement]]) -> None:
    rows = [["reader", "workers", "million tokens/s of each run", "median", "peak MB"]]
    for name, of_job in measurements.items():
        results = [measurement.result for measurement in select_timed(of_job)]
        rates = [result["tokens"] / result["elapsed_s"] / 1e6 for result in results]
        peak_mb = max(measurement.peak_bytes for measurement in of_job) / 1e6
        cells = [" ".join(f"{rate:.2f}" for rate in rates), f"{median(rates):.2f}", f"{peak_mb:,.0f}"]
        rows.append([*name.split("|"), *cells])
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=40, help=f"MB of text, in {NUM_FILES} files (default: 40)")
    parser.add_argument("--seconds", type=float, default=5, help="duration of the count in each run (default: 5)")
    parser.add_argument(
        "--baseline-python",
        type=parse_path,
        help="a Python with datasets, psutil, torch and transformers (default: no baseline)",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="try the bench in seconds, with a byte tokenizer and random words"
    )
    add_text_options(parser)
    add_run_options(parser, repeat=3)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seconds, arguments.repeat = 0.1, 0
    files = make_texts(arguments)
    if not arguments.smoke:
        print_machine(arguments.folio_python)
    with fresh_folder(arguments.scratch) as scratch:
        tokenizer = "byte" if arguments.smoke else "gpt2"
        job = build_job(arguments.folio_python, "--document", "line", "--tokenizer", tokenizer, *input_options(files))
        build = measure(job(scratch), scratch / "build.txt", with_memory=False)
        text_bytes = sum(path.stat().st_size for path in files)
        print(f"one build of {text_bytes:,} bytes of text: {build.elapsed_s:.1f} s\n", flush=True)
        jobs = make_jobs(arguments, scratch / BUILD_NAME, files, scratch)
        measurements = run_alternately(
            jobs, arguments.repeat, arguments.scratch, lambda folder: json.loads((folder / RESULT_FILE).read_bytes())
        )
    print_rates(measurements)


if __name__ == "__main__":
    run_worker(*sys.argv[2:]) if sys.argv[1:2] == ["--worker"] else main()
