"""Compare Folio's stream, from text to batches of token blocks without shards, with `datasets` in streaming mode.

    python bench/stream.py /data/long.parquet --baseline-python /venvs/hf/bin/python
    python bench/stream.py --smoke

Both make the same blocks and batches, each in a fresh process with one thread. The baseline follows
the guide of Hugging Face `datasets`: load_dataset(streaming=True), map(batched=True) to ids and
blocks, and shuffle(buffer_size). Its tokenizer is transformers' GPT2TokenizerFast if that is
installed, else the Rust library that it wraps. Both end a document with the end-of-text token. The
baseline drops the incomplete block after every thousand documents.

Memory is the largest resident set of the process. Tokens per second count from the first batch on.
Tokens per CPU second count from the start of the process; a busy machine changes them less.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from time import perf_counter
from typing import Any

from bench.lib.vocabulary import END_OF_TEXT, default_cache, write_vocabulary

ROOT = Path(__file__).resolve().parent.parent
FOLIO, BASELINE = "Folio", "datasets"
MAP_BATCH_SIZE = 1000  # the default of `map`
SMOKE_DOCUMENTS = 3000
FORWARDED_OPTIONS = ("block_size", "batch_size", "stream_buffer", "seconds")
# The libraries read these variables when they are imported. One thread each, so that the code is
# compared and not the number of cores.
ONE_THREAD = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def folio_batches(path: str, arguments: argparse.Namespace) -> Iterator[Any]:
    """Yield Folio's batches."""
    from preprocess.stream import TokenStream, batches, open_corpus

    tokenizer = "byte" if arguments.smoke else "gpt2"
    # The smallest possible validation split, because the baseline has none.
    corpus = open_corpus(None, inputs=(path,), tokenizer=tokenizer, dedup=False, split="threshold", val_fraction=1e-12)
    stream = TokenStream(corpus, block_size=arguments.block_size, stream_buffer=arguments.stream_buffer)
    for inputs, _ in batches(stream, arguments.batch_size):
        yield inputs


def baseline_batches(path: str, arguments: argparse.Namespace) -> Iterator[Any]:
    """Yield the baseline's batches."""
    import numpy as np
    from datasets import load_dataset

    encode, eot_id = _load_baseline_tokenizer(arguments.tokenizer_json)
    width = arguments.block_size + 1

    def to_blocks(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = list(chain.from_iterable([*document, eot_id] for document in encode(rows["text"])))
        return {"ids": [ids[i : i + width] for i in range(0, len(ids) - width + 1, width)]}

    rows = load_dataset("parquet", data_files=path, split="train", streaming=True)
    blocks = rows.map(to_blocks, batched=True, batch_size=MAP_BATCH_SIZE, remove_columns=rows.column_names)
    if arguments.stream_buffer:
        blocks = blocks.shuffle(seed=0, buffer_size=arguments.stream_buffer)
    for batch in blocks.iter(batch_size=arguments.batch_size, drop_last_batch=True):
        yield np.asarray(batch["ids"])[:, :-1]


def _load_baseline_tokenizer(tokenizer_json: str) -> tuple[Callable[[list[str]], list[list[int]]], Any]:
    """Return a function that encodes texts, and the end-of-text id."""
    try:
        from transformers import GPT2TokenizerFast
    except ImportError:
        from tokenizers import Tokenizer

        rust_tokenizer = Tokenizer.from_file(tokenizer_json)
        return (
            lambda texts: [encoding.ids for encoding in rust_tokenizer.encode_batch_fast(texts)],
            rust_tokenizer.token_to_id(END_OF_TEXT),
        )
    tokenizer = GPT2TokenizerFast(tokenizer_file=tokenizer_json)
    return (
        lambda texts: tokenizer(texts, return_attention_mask=False)["input_ids"],
        tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )


def measure_here(name: str, path: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Read the stream in this process and measure it.

    The time of the first batch includes the import of the libraries.
    """
    import resource

    begin = perf_counter()
    batches = (folio_batches if name == FOLIO else baseline_batches)(path, arguments)
    num_tokens, first_batch_s = 0, 0.0
    for batch in batches:
        first_batch_s = first_batch_s or perf_counter() - begin
        num_tokens += batch.size + len(batch)  # with the last token of each block
        if arguments.seconds and perf_counter() - begin - first_batch_s > arguments.seconds:
            break
    elapsed_s = perf_counter() - begin - first_batch_s
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "tokens": num_tokens,
        "tokens_per_s": num_tokens / max(elapsed_s, 1e-9),
        "tokens_per_cpu_s": num_tokens / (usage.ru_utime + usage.ru_stime),
        "first_batch_s": first_batch_s,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def measure_in_process(
    name: str, python: str, path: str, arguments: argparse.Namespace, tokenizer_json: Path
) -> dict[str, float]:
    """Call `measure_here` in a fresh process of `python`."""
    command = [python, str(Path(__file__).resolve()), path, "--worker", name, "--tokenizer-json", str(tokenizer_json)]
    for option in FORWARDED_OPTIONS:
        command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    if arguments.smoke:
        command.append("--smoke")
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), "HF_HOME": cache}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if process.returncode:
        sys.exit(f"{name} failed:\n{process.stderr[-3000:]}")
    measurement: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return measurement


def write_smoke_file(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "smoke.parquet"
    texts = [f"The document number {i}, of some words. " * 9 for i in range(SMOKE_DOCUMENTS)]
    pq.write_table(pa.table({"text": texts}), path)
    return str(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="Parquet files with a column `text`")
    parser.add_argument(
        "--baseline-python",
        help="a Python that has `datasets`, and `transformers` or `tokenizers` (default: no baseline)",
    )
    parser.add_argument("--block-size", type=int, default=256, help="tokens per block (default: 256)")
    parser.add_argument("--batch-size", type=int, default=8, help="blocks per batch (default: 8)")
    parser.add_argument(
        "--stream-buffer", type=int, default=10_000, help="blocks in the shuffle buffer (default: 10,000)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0,
        help="stop each stream so long after its first batch (default: at the end of the file)",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="try the bench with a small generated file and the byte tokenizer"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer-json", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.paths and not arguments.smoke:
        parser.error("no Parquet file given; name one that bench/make_text.py has made, or pass --smoke")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        print(json.dumps(measure_here(arguments.worker, arguments.paths[0], arguments)))
        return
    from bench.lib.report import print_table  # not in the worker, whose Python may lack psutil

    rows = [["stream", "text", "tokens", "tokens/s", "tokens per CPU s", "first batch", "peak MB"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pythons, tokenizer_json = {FOLIO: sys.executable}, folder
        if arguments.baseline_python:
            pythons[BASELINE] = arguments.baseline_python
            tokenizer_json = write_vocabulary(default_cache(), folder).tokenizer_json
        for path in arguments.paths or [write_smoke_file(folder)]:
            for stream, python in pythons.items():
                measurement = measure_in_process(stream, python, path, arguments, tokenizer_json)
                rates = [measurement[key] / 1e6 for key in ("tokens_per_s", "tokens_per_cpu_s")]
                rows.append(
                    [
                        stream,
                        Path(path).name,
                        f"{measurement['tokens'] / 1e6:,.1f} M",
                        *(f"{rate:,.2f} M" for rate in rates),
                        f"{measurement['first_batch_s']:.2f} s",
                        f"{measurement['peak_bytes'] / 1e6:,.0f}",
                    ]
                )
                print(f"  {stream}, {Path(path).name}: {rates[0]:,.2f} M tokens/s", file=sys.stderr, flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
