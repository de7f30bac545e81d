"""Decided documents → shards: encode, place control ids, write, hash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from preprocess.build_log import BuildLog
from preprocess.documents import table_text_bytes
from preprocess.progress import Progress
from preprocess.recipe import Recipe
from preprocess.shards.format import DOC_DTYPE
from preprocess.shards.writer import ShardWriter
from preprocess.stages.encode import EngineMismatch, encode_checked, sample_for_check, surround
from preprocess.tokenizers.interface import Tokenizer

# Enough documents at a time that the cost of a call vanishes, few enough that a batch's ids stay in cache and memory.
BATCH_BYTES = 8 << 20
# tiktoken does 5 MB/s where gigatoken does 100: checking about a megabyte of a split costs 0.2 s, whatever its size.
CHECKED_BYTES = 1 << 20


@dataclass(frozen=True)
class Decided:
    """The documents that stay, and all that must be known before the first is written."""

    table: pa.Table
    hashes: np.ndarray  # (K, 16) uint8
    in_val: np.ndarray  # (K,) bool
    tokenizer: Tokenizer
    control_ids: dict[str, int]
    front: np.ndarray  # (K, F) ids to put in front of each document, −1 for none
    num_empty: int
    num_duplicates: int

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size + len(self.control_ids)


@dataclass(frozen=True)
class Assembled:
    """What was written."""

    splits: dict[str, dict[str, Any]]  # as the manifest holds them
    lengths: dict[str, np.ndarray]  # of each split, its documents' lengths in tokens, control ids included


def assemble(recipe: Recipe, decided: Decided, aside: Path, progress: Progress, log: BuildLog) -> Assembled:
    """Write every split's shards into `aside`.

    Where the fast engine turns out to differ from the reference, the reference encodes everything anew.
    """
    tokenizer = decided.tokenizer
    with log.phase("assemble"):
        if why_not := tokenizer.start_fast_engine():
            progress.warn(f"{why_not}; {tokenizer.reference_engine} encodes this build")
            log.note("engine_fallback", why_not)
        try:
            progress.say(f"encoding {decided.table.num_rows:,} documents with {tokenizer.engine}")
            result = _write_splits(recipe, decided, aside, progress)
        except EngineMismatch as e:
            progress.warn(f"{e}; {tokenizer.reference_engine} encodes the whole build")
            log.note("engine_fallback", str(e))
            tokenizer.use_reference()
            for path in aside.glob("*.*"):
                path.unlink()
            result = _write_splits(recipe, decided, aside, progress)
    log.note("engine", tokenizer.engine)
    return result


def _write_splits(recipe: Recipe, decided: Decided, aside: Path, progress: Progress) -> Assembled:
    sizes = table_text_bytes(decided.table)
    languages = language_numbers(decided.table)
    back = np.full((len(sizes), 1), decided.tokenizer.eot_id if recipe.eot == "append" else -1, np.int64)
    splits, lengths = {}, {}
    with progress.bar("encode", total=int(sizes.sum()), unit="B") as bar:
        for split, side in (("train", ~decided.in_val), ("val", decided.in_val)):
            rows_of_split = np.flatnonzero(side)
            in_sample = np.zeros(len(sizes), bool)
            share = CHECKED_BYTES / max(int(sizes[rows_of_split].sum()), 1)
            in_sample[rows_of_split[sample_for_check(decided.hashes[rows_of_split], share, seed=recipe.seed)]] = True
            lengths_by_batch = []
            with ShardWriter(aside, split, vocab_size=decided.vocab_size, shard_tokens=recipe.shard_tokens) as writer:
                for rows in _batches(rows_of_split, sizes):
                    batch = decided.table.take(pa.array(rows)).combine_chunks()
                    texts = batch.column("text").chunk(0)
                    ids, ends = encode_checked(decided.tokenizer, texts, np.flatnonzero(in_sample[rows]))
                    ids, ends = surround(ids, ends, decided.front[rows], back[rows])
                    num_bytes = int(sizes[rows].sum())
                    writer.append(ids, ends, _doc_table(batch, decided.hashes[rows], languages), text_bytes=num_bytes)
                    lengths_by_batch.append(np.diff(ends, prepend=0))
                    bar.update(num_bytes)
                splits[split] = writer.finish()
            lengths[split] = np.concatenate(lengths_by_batch)
    return Assembled(splits, lengths)


def _batches(rows: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """`rows` in runs of about BATCH_BYTES of text."""
    cumulative = np.cumsum(sizes[rows])
    start = 0
    while start < len(rows):
        before = int(cumulative[start - 1]) if start else 0
        stop = max(int(np.searchsorted(cumulative, before + BATCH_BYTES, side="right")), start + 1)
        yield rows[start:stop]
        start = stop


def language_numbers(table: pa.Table) -> dict[str, int]:
    """Tag → number in `.docs`, by sorted tag from 1; 0 is for documents that name no language."""
    return {tag: number for number, tag in enumerate(sorted(set(table.column("lang").unique().to_pylist()) - {None}), start=1)}


def _doc_table(batch: pa.Table, hashes: np.ndarray, languages: dict[str, int]) -> np.ndarray:
    docs = np.empty(len(hashes), DOC_DTYPE)
    docs["hash"] = hashes
    docs["source"] = batch.column("source").to_numpy()
    tags = batch.column("lang").chunk(0).dictionary_encode()
    numbers = np.array([0, *(languages[tag] for tag in tags.dictionary.to_pylist())], np.uint32)
    docs["lang"] = numbers[tags.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1]
    docs["position"] = batch.column("position").to_numpy()
    return docs
