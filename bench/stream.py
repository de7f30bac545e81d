"""Text to batches of token blocks with nothing on the disk: Folio's stream beside Hugging Face `datasets` in streaming mode with GPT-2's
fast tokenizer, in the same blocks and batches, each in a fresh process of one thread.

python bench/stream.py /data/long.parquet --peer-python /venvs/hf/bin/python
python bench/stream.py --smoke

The peer's tokenizer is transformers' GPT2TokenizerFast where that is installed, else the Rust library that it wraps, by itself. Its stream
is as its guide has it: load_dataset(streaming=True), map(batched=True) to ids and blocks, shuffle(buffer_size). Both end a document with
the end-of-text token; the peer drops what is left of every thousand documents. Memory is the largest resident set of the process.
Tokens per second count from the first batch on; per CPU second, from the start of the process, which a busy machine disturbs less.
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
from collections.abc import Iterator
from itertools import chain
from time import perf_counter
from typing import Any

from bench.lib.vocabulary import default_cache, write_vocabulary

ROOT = Path(__file__).resolve().parent.parent
END_OF_TEXT = "<|endoftext|>"
DOCUMENTS_AT_ONCE = 1000  # the default of `map`
SMOKE_DOCUMENTS = 3000
# Before anything that reads it is imported: one thread each, so that engines are compared, not cores.
ONE_THREAD = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def folio_batches(path: str, arguments: argparse.Namespace) -> Iterator[Any]:
    """Folio's batches, as a training loop takes them."""
    from preprocess.stream import TokenStream, batches, open_corpus

    tokenizer = "byte" if arguments.smoke else "gpt2"
    # Nothing validates, as near as a recipe allows: the peer has one side.
    corpus = open_corpus(None, inputs=(path,), tokenizer=tokenizer, dedup=False, split="threshold", val_fraction=1e-12)
    stream = TokenStream(corpus, block_size=arguments.block_size, stream_buffer=arguments.stream_buffer)
    for inputs, _ in batches(stream, arguments.batch_size):
        yield inputs


def peer_batches(path: str, arguments: argparse.Namespace) -> Iterator[Any]:
    """The peer's batches."""
    import numpy as np
    from datasets import load_dataset

    encode, eot = _peer_tokenizer(arguments.tokenizer_json)
    width = arguments.block_size + 1

    def to_blocks(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = list(chain.from_iterable([*found, eot] for found in encode(rows["text"])))
        return {"ids": [ids[i : i + width] for i in range(0, len(ids) - width + 1, width)]}

    rows = load_dataset("parquet", data_files=path, split="train", streaming=True)
    blocks = rows.map(to_blocks, batched=True, batch_size=DOCUMENTS_AT_ONCE, remove_columns=rows.column_names)
    if arguments.stream_buffer:
        blocks = blocks.shuffle(seed=0, buffer_size=arguments.stream_buffer)
    for batch in blocks.iter(batch_size=arguments.batch_size, drop_last_batch=True):
        yield np.asarray(batch["ids"])[:, :-1]


def _peer_tokenizer(tokenizer_json: str) -> tuple[Any, int]:
    try:
        from transformers import GPT2TokenizerFast
    except ImportError:
        from tokenizers import Tokenizer

        bare = Tokenizer.from_file(tokenizer_json)
        return lambda texts: [found.ids for found in bare.encode_batch_fast(texts)], bare.token_to_id(END_OF_TEXT)
    wrapped = GPT2TokenizerFast(tokenizer_file=tokenizer_json)
    return lambda texts: wrapped(texts, return_attention_mask=False)["input_ids"], wrapped.convert_tokens_to_ids(
        END_OF_TEXT
    )


def measure_here(name: str, path: str, arguments: argparse.Namespace) -> dict[str, float]:
    """This process' figures. The first batch's time counts from before the libraries are imported."""
    import resource

    begin = perf_counter()
    take = folio_batches if name == "Folio" else peer_batches
    num_tokens, first_s = 0, 0.0
    for batch in take(path, arguments):
        first_s = first_s or perf_counter() - begin
        num_tokens += batch.size + len(batch)  # the blocks' last tokens too
        if arguments.seconds and perf_counter() - begin - first_s > arguments.seconds:
            break
    steady_s = perf_counter() - begin - first_s
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "tokens": num_tokens,
        "tokens_per_s": num_tokens / max(steady_s, 1e-9),
        "tokens_per_cpu_s": num_tokens / (used.ru_utime + used.ru_stime),
        "first_s": first_s,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def measure(name: str, python: str, path: str, arguments: argparse.Namespace, tokenizer_json: Path) -> dict[str, float]:
    """The figures of `name` in a fresh process."""
    command = [
        python, str(Path(__file__).resolve()), path, "--inside", name, "--tokenizer-json", str(tokenizer_json),
        *chain.from_iterable((f"--{key.replace('_', '-')}", str(getattr(arguments, key)))
                             for key in ("block_size", "batch_size", "stream_buffer", "seconds")),
        *(["--smoke"] if arguments.smoke else []),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), "HF_HOME": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def smoke_file(folder: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "smoke.parquet"
    pq.write_table(
        pa.table({"text": [f"The document number {i}, of some words. " * 9 for i in range(SMOKE_DOCUMENTS)]}), path
    )
    return str(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="Parquet files with a column `text`")
    parser.add_argument(
        "--peer-python", help="a Python that has `datasets`, and `transformers` or `tokenizers` (default: no peer)"
    )
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--stream-buffer", type=int, default=10_000)
    parser.add_argument(
        "--seconds",
        type=float,
        default=0,
        help="stop each so long behind its first batch (default: at the end of the file)",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="a small file, made up, and the byte tokenizer: to try the bench"
    )
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer-json", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.paths and not arguments.smoke:
        parser.error("name a Parquet file, as bench/make_text.py makes, or pass --smoke")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.inside:
        print(json.dumps(measure_here(arguments.inside, arguments.paths[0], arguments)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = {"Folio": sys.executable} | ({"datasets": arguments.peer_python} if arguments.peer_python else {})
        tokenizer_json = write_vocabulary(default_cache(), folder).tokenizer_json if arguments.peer_python else folder
        print(
            "| stream | text | tokens | tokens/s | tokens per CPU s | first batch | peak memory |\n|---|---|---|---|---|---|---|"
        )
        for path in arguments.paths or [smoke_file(folder)]:
            for tool, python in tools.items():
                got = measure(tool, python, path, arguments, tokenizer_json)
                print(
                    f"| {tool} | {Path(path).name} | {got['tokens'] / 1e6:,.1f} M | {got['tokens_per_s'] / 1e6:,.2f} M | "
                    f"{got['tokens_per_cpu_s'] / 1e6:,.2f} M | {got['first_s']:.2f} s | {got['peak_bytes'] / 1e6:,.0f} MB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
