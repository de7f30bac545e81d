"""How fast batches of 32 × 256 tokens reach a loop: torch_data's datasets under DataLoader, the trainer's own data, and a peer.

The peer is Hugging Face's `datasets` streaming the same text files through GPT2TokenizerFast, tokenized anew each epoch where Folio built
once; it does not shuffle. `--peer-python` names a Python that has datasets, transformers and torch. Each job is a fresh process, and
counts for `--seconds` after its first batches.

    python bench/loader.py --mirror CORPORA --peer-python PYTHON
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import subprocess
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any

from bench.lib.measure import (
    NAME,
    Job,
    Run,
    absolute,
    add_options,
    alternate,
    folio,
    fresh_folder,
    measure,
    median,
    print_machine,
    print_table,
)
from bench.lib.texts import LONG_BYTES, add_text_options, kept, text_folder
from bench.lib.vocabulary import default_cache, write_vocabulary
from bench.make_text import natural, random, write_text

BATCH_SIZE, BLOCK_SIZE = 32, 256
WARM_UP = 16  # batches, more than DataLoader has workers fetch ahead
LINES = 50  # that the peer tokenizes at once, about 0.1 million tokens: with its default of 1,000 a run would end between two of them
RESULT = "result.json"
PEER = "datasets, streaming"
READERS = [
    ("TokenWindows", 0),
    ("TokenWindows", 2),
    ("ShuffledWindows", 0),
    ("ShuffledWindows", 2),
    ("train/data/batches.py", 0),
]


def folio_batches(reader: str, build: str, num_workers: int) -> Iterator[Any]:
    """Endless batches, inputs first, each (32, 256)."""
    if reader == "train/data/batches.py":
        yield from trainer_batches(build)
    from preprocess.shards.torch_dataset import ShuffledWindows, TokenWindows, make_loader

    kinds = {"TokenWindows": TokenWindows, "ShuffledWindows": ShuffledWindows}
    loader = make_loader(
        kinds[reader](build, block_size=BLOCK_SIZE), batch_size=BATCH_SIZE, num_workers=num_workers, drop_last=True
    )
    while True:
        yield from loader


def trainer_batches(build: str) -> Iterator[Any]:
    import torch

    from train.config import Config
    from train.data.batches import TrainingData
    from train.data.builds import open_builds

    config = Config(data=build, out_dir="none", block_size=BLOCK_SIZE, batch_size=BATCH_SIZE)
    data = TrainingData(open_builds(build), config, device=torch.device("cpu"))
    first = 0
    while True:
        yield data.batch(first, BATCH_SIZE)
        first += BATCH_SIZE


def peer_batches(tokenizer_json: str, files: list[str], num_workers: int) -> Iterator[Any]:
    import torch
    from datasets import load_dataset
    from torch.utils.data import DataLoader
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast(tokenizer_file=tokenizer_json)

    def cut(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = list(
            chain.from_iterable([*line, tokenizer.eos_token_id] for line in tokenizer(batch["text"])["input_ids"])
        )
        starts = range(0, len(ids) - BLOCK_SIZE, BLOCK_SIZE)
        return {"x": [ids[s : s + BLOCK_SIZE] for s in starts], "y": [ids[s + 1 : s + BLOCK_SIZE + 1] for s in starts]}

    # Its format "torch" makes a tensor of each single token, which holds the loop to 0.04 million a second.
    def collate(rows: list[dict[str, list[int]]]) -> list[torch.Tensor]:
        return [torch.tensor([row[name] for row in rows]) for name in ("x", "y")]

    lines = load_dataset("text", data_files=files, split="train", streaming=True)
    windows = lines.map(cut, batched=True, batch_size=LINES, remove_columns=["text"])
    while True:
        yield from DataLoader(windows, BATCH_SIZE, num_workers=num_workers, drop_last=True, collate_fn=collate)


def count(batches: Iterable[Any], seconds: float) -> dict[str, float]:
    """Input tokens in at least `seconds`, and how long it took."""
    line = iter(batches)
    for _ in range(WARM_UP):
        assert next(line)[0].shape == (BATCH_SIZE, BLOCK_SIZE)
    tokens, begin = 0, perf_counter()
    while (elapsed := perf_counter() - begin) < seconds:
        tokens += next(line)[0].numel()
    return {"tokens": tokens, "seconds": elapsed}


def run_inside(reader: str, num_workers: str, seconds: str, output: str, *what: str) -> None:
    """A job, in its own process. `what`: the build, or the tokenizer and the text files."""
    batches = (
        peer_batches(what[0], list(what[1:]), int(num_workers))
        if reader == PEER
        else folio_batches(reader, what[0], int(num_workers))
    )
    Path(output, RESULT).write_text(json.dumps(count(batches, float(seconds))))


def command(python: Path, reader: str, num_workers: int, seconds: float, what: list[str], folder: Path) -> list[str]:
    return [
        str(python),
        str(Path(__file__).resolve()),
        "--inside",
        reader,
        str(num_workers),
        str(seconds),
        str(folder),
        *what,
    ]


def make_texts(arguments: argparse.Namespace) -> list[Path]:
    """Two files of one document a line, since `datasets` gives each worker files of its own."""
    if arguments.mirror is None and not arguments.smoke:
        sys.exit("natural words come from corpora: name their folder with --mirror or PREPROCESS_MIRROR")
    folder = text_folder(arguments)
    if arguments.smoke:
        return [
            kept(folder / f"smoke-{n}.txt", lambda path, n=n: write_text(path, random(200_000, 400, seed=n)))
            for n in range(2)
        ]
    size, mirror = arguments.mb * 500_000, arguments.mirror
    return [
        kept(
            folder / f"natural-{size}-{n}.txt",
            lambda path, n=n: write_text(path, natural(mirror, size, LONG_BYTES, seed=n)),
        )
        for n in range(2)
    ]


def make_jobs(arguments: argparse.Namespace, build: Path, files: list[Path], scratch: Path) -> dict[str, Job]:
    readers = READERS[1::2] if arguments.smoke else READERS
    jobs: dict[str, Job] = {
        f"{reader}|{n}": partial(command, arguments.folio_python, reader, n, arguments.seconds, [str(build)])
        for reader, n in readers
    }
    if arguments.peer_python and has_peer(arguments.peer_python):
        tokenizer = write_vocabulary(default_cache(), scratch / "vocabulary").tokenizer_json
        of_peer = [str(tokenizer), *map(str, files)]
        jobs |= {
            f"{PEER}|{n}": partial(command, arguments.peer_python, PEER, n, arguments.seconds, of_peer) for n in (0, 2)
        }
    return jobs


def has_peer(python: Path) -> bool:
    imports = subprocess.run(
        [str(python), "-c", "import datasets, transformers, torch"], capture_output=True, text=True
    )
    if imports.returncode:
        print(f"no peer: {imports.stderr.strip().splitlines()[-1]}")
    return not imports.returncode


def print_rates(runs: dict[str, list[Run]]) -> None:
    rows = [["reader", "workers", "million tokens/s of each run", "median", "peak MB"]]
    for name, of_job in runs.items():
        rates = [
            run.found["tokens"] / run.found["seconds"] / 1e6 for run in of_job if not run.is_watched or len(of_job) == 1
        ]
        peak_mb = max(run.peak_bytes for run in of_job) / 1e6
        rows.append(
            [*name.split("|"), " ".join(f"{rate:.2f}" for rate in rates), f"{median(rates):.2f}", f"{peak_mb:,.0f}"]
        )
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=40, help="of text, in two files (default: 40)")
    parser.add_argument("--seconds", type=float, default=5, help="that each run counts for (default: 5)")
    parser.add_argument(
        "--peer-python", type=absolute, help="a Python with datasets, transformers and torch (default: no peer)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="whether it runs at all, in seconds, on bytes of random words"
    )
    add_text_options(parser)
    add_options(parser, repeat=3)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seconds, arguments.repeat = 0.1, 0
    files = make_texts(arguments)
    if not arguments.smoke:
        print_machine(arguments.folio_python)
    with fresh_folder(arguments.scratch) as scratch:
        options = ["--document", "line", "--tokenizer", "byte" if arguments.smoke else "gpt2"]
        options += [word for path in files for word in ("--input", str(path))]
        built = measure(folio(arguments.folio_python, *options)(scratch), scratch / "build.txt", with_memory=False)
        print(
            f"the build of {sum(path.stat().st_size for path in files):,} bytes of text, once: {built.seconds:.1f} s\n",
            flush=True,
        )
        jobs = make_jobs(arguments, scratch / NAME, files, scratch)
        runs = alternate(
            jobs, arguments.repeat, arguments.scratch, lambda folder: json.loads((folder / RESULT).read_bytes())
        )
    print_rates(runs)


if __name__ == "__main__":
    run_inside(*sys.argv[2:]) if sys.argv[1:2] == ["--inside"] else main()
