"""What a build would be like, by a look at some of its documents: tokens per document, speed, and what it will need."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.build.plan import Plan
from preprocess.build.stats import describe_lengths, ratio
from preprocess.build.work_dir import DOCUMENT
from preprocess.documents import text_bytes
from preprocess.errors import FolioError
from preprocess.readers.records import Rejects
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import DOC_DTYPE, END_DTYPE
from preprocess.shards.windows import keyed_hash
from preprocess.stages.dedup import content_hashes
from preprocess.stages.pipeline import documents_of
from preprocess.tokenizers import characters, sentencepiece_bpe
from preprocess.tokenizers.interface import Tokenizer

PARTITIONS_READ = 4
ENOUGH_BYTES = 32 << 20  # of one partition; a compressed file is one partition, whatever its length
# Measured with gpt2 on 400 MB of long documents: the main process, each worker, and the seconds that starting takes.
MAIN_BYTES, WORKER_BYTES, START_S = 100 << 20, 300 << 20, 1.0


@dataclass
class _Seen:
    """What was read for the sample."""

    texts: list[pa.LargeStringArray]
    languages: list[pa.StringArray]
    hashes: list[np.ndarray]
    input_bytes: int = 0
    text_bytes: int = 0
    elapsed_s: float = 0.0


def estimate_build(plan: Plan, num_documents: int, *, workers: int) -> dict[str, Any]:
    """Figures of a seeded sample of `num_documents` and estimates for the whole. Raises FolioError where there is no document."""
    recipe = plan.recipe
    seen = _read(plan)
    texts, _ = _choose(seen, num_documents, seed=recipe.seed)
    tokenizer = _tokenizer(plan, recipe, texts)
    tokenizer.start_fast_backend()
    begin = time.perf_counter()
    ids, ends = tokenizer.encode(texts)
    encode_s = time.perf_counter() - begin
    sampled_bytes = int(text_bytes(texts).sum())
    lengths = Counter(np.diff(ends, prepend=0).tolist())
    share = seen.text_bytes / max(seen.input_bytes, 1)
    total_bytes = int(sum(plan.partition_bytes()) * share)
    num_tokens = int(total_bytes * len(ids) / max(sampled_bytes, 1))
    total_documents = int(total_bytes * sum(map(len, seen.texts)) / max(seen.text_bytes, 1))
    bytes_per_s = 1 / (seen.elapsed_s / max(seen.text_bytes, 1) + encode_s / max(sampled_bytes, 1))
    return {
        "documents": len(texts),
        "tokens_per_document": describe_lengths(lengths),
        "bytes_per_token": ratio(sampled_bytes, len(ids)),
        "tokens_per_s": round(len(ids) / max(encode_s, 1e-9)),
        "engine": tokenizer.engine,
        "build": {
            "documents": total_documents,
            "text_bytes": total_bytes,
            "tokens": num_tokens,
            "elapsed_s": round(START_S + total_bytes / bytes_per_s / workers, 1),
            "disk_bytes": _disk_bytes(num_tokens, total_documents, tokenizer),
            "memory_bytes": MAIN_BYTES + WORKER_BYTES * min(workers, len(plan.partitions)),
            "workers": workers,
        },
    }


def read_some(plan: Plan, num_documents: int) -> tuple[pa.LargeStringArray, pa.StringArray]:
    """A seeded sample of a corpus' documents: their texts, and their languages. Raises FolioError where there is none."""
    return _choose(_read(plan), num_documents, seed=plan.recipe.seed)


def _disk_bytes(num_tokens: int, num_documents: int, tokenizer: Tokenizer) -> int:
    """Ids and tables, in the work folder and in the shards."""
    itemsize = 2 if tokenizer.vocab_size <= 1 << 16 else 4
    return 2 * num_tokens * itemsize + num_documents * (DOCUMENT.itemsize + DOC_DTYPE.itemsize + END_DTYPE.itemsize)


def _read(plan: Plan) -> _Seen:
    """Some partitions, drawn by the seed, read and cleaned."""
    seen, numbers = _Seen([], [], []), np.arange(len(plan.partitions), dtype=np.uint64)
    order = np.argsort(keyed_hash(plan.recipe.seed, numbers), kind="stable")
    sizes = plan.partition_bytes()
    for number in order[:PARTITIONS_READ].tolist():
        begin, before = time.perf_counter(), seen.text_bytes
        is_whole = True
        for span in plan.partitions[number].spans:
            for batch, _ in documents_of(plan.sources[span.source], span, plan.recipe, Rejects(None), Counter()):
                batch = batch.filter(pa.array(text_bytes(batch.column("text")) > 0))
                texts = batch.column("text")
                seen.texts.append(texts)
                seen.languages.append(batch.column("lang"))
                seen.hashes.append(content_hashes(texts))
                seen.text_bytes += int(text_bytes(texts).sum())
                if seen.text_bytes - before > ENOUGH_BYTES:
                    is_whole = False
                    break
            if not is_whole:
                break
        seen.elapsed_s += time.perf_counter() - begin
        # Of a partition that is not read to its end, nobody knows how much input the text read was: as much, say.
        seen.input_bytes += sizes[number] if is_whole else seen.text_bytes - before
    return seen


def _choose(seen: _Seen, num_documents: int, *, seed: int) -> tuple[pa.LargeStringArray, pa.StringArray]:
    texts = pa.concat_arrays(seen.texts) if seen.texts else pa.array([], pa.large_string())
    if not len(texts):
        raise FolioError("there is nothing to sample: no document holds text; check the cleaning rules and conditions")
    keys = keyed_hash(seed, np.ascontiguousarray(np.concatenate(seen.hashes)[:, :8]).view("<u8").reshape(-1))
    rows = pa.array(np.sort(np.argsort(keys, kind="stable")[:num_documents]))
    return texts.take(rows), pa.concat_arrays(seen.languages).take(rows)


def _tokenizer(plan: Plan, recipe: Recipe, texts: pa.LargeStringArray) -> Tokenizer:
    """The build's own, or one trained on the sample alone, which is a little worse."""
    if plan.tokenizer is not None:
        return plan.tokenizer
    if recipe.tokenizer == "char":
        return characters.train_char(texts.to_pylist(), has_eot=recipe.eot == "append")
    return sentencepiece_bpe.train(texts.to_pylist(), num_pieces=recipe.num_pieces)


def format_estimate(result: dict[str, Any]) -> list[str]:
    """The figures for a person."""
    lengths, build = result["tokens_per_document"], result["build"]
    return [
        f"sample      {result['documents']:,} documents, {result['bytes_per_token']:.2f} bytes per token",
        f"tokens per document: mean {lengths['mean']:,}, median {lengths['median']:,}, p05 {lengths['p05']:,}, p95 {lengths['p95']:,}, "
        f"max {lengths['max']:,}",
        f"encoding    {result['tokens_per_s']:,} tokens/s with {result['engine']}, one thread",
        f"the build   about {build['documents']:,} documents, {build['text_bytes']:,} bytes of text, {build['tokens']:,} tokens, before "
        "deduplication",
        f"will need   about {build['elapsed_s']:,} s with {build['workers']} workers, {build['disk_bytes'] / 1e9:,.2f} GB of disk, "
        f"{build['memory_bytes'] / 1e9:,.2f} GB of memory",
    ]
