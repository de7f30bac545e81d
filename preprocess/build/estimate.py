"""Estimates a build from some of its documents: tokens per document, speed, disk space and memory.

It reads a few partitions, chosen by the seed, with the same code as a build. It encodes
`num_documents` of the documents with one thread, and scales the figures to the size of the input.
Duplicates are not removed, so for a corpus with many duplicates the estimate is too large. Of a large
remote input, only a few files are copied.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.build.count_leaks import describe_leaks
from preprocess.build.filter_stats import describe_counts, format_filter_counts
from preprocess.build.near_dedup.runs import BAND_DTYPE, RUN_DTYPE
from preprocess.build.plan import Plan
from preprocess.build.stats import compute_ratio, describe_lengths
from preprocess.build.work_dir import DOCUMENT_DTYPE
from preprocess.chats.marked_text import count_plain_bytes, get_plain_texts, get_turn_lines, split_turns
from preprocess.documents import TRAIN, VAL, count_text_bytes
from preprocess.errors import FolioError, format_quantity
from preprocess.filters.chain import FilterChain
from preprocess.readers.records import Rejects, format_counts
from preprocess.readers.reject_messages import describe_rejects, explain_no_document
from preprocess.recipes.schema import Recipe, has_validation
from preprocess.shards.files import JsonObject
from preprocess.shards.format import DOC_DTYPE, END_DTYPE, token_dtype
from preprocess.shards.windows import keyed_hash
from preprocess.stages.decontaminate import CONTAMINATED, Decontaminator
from preprocess.stages.dedup import hash_contents
from preprocess.stages.encode import BackendMismatch, encode_group
from preprocess.stages.encode_chats import TurnIds
from preprocess.stages.evaluation_items import make_decontaminator
from preprocess.stages.near_dup import hash_bands, hash_shingles
from preprocess.stages.pipeline import count_dropped, decontaminate, read_documents
from preprocess.stages.slices import iter_groups, slice_texts
from preprocess.tokenizers import characters, sentencepiece_bpe
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.lost_characters import LossCounter

NUM_PARTITIONS_READ = 4
# Stop reading a partition after this much text. A compressed file is one partition of any size.
MAX_TEXT_BYTES, MAX_DOCUMENTS = 32 << 20, 1 << 20
# Measured with gpt2 on 400 MB of long documents.
MAIN_MEMORY_BYTES, WORKER_MEMORY_BYTES, START_S = 100 << 20, 300 << 20, 1.0


@dataclass
class _ReadDocuments:
    """The documents that were read, one array per batch, and the size and time of reading them."""

    filters: FilterChain
    texts: list[pa.LargeStringArray] = field(default_factory=list)
    languages: list[pa.StringArray] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)  # (D, 16) uint8 each
    sides: list[np.ndarray] = field(default_factory=list)  # (D,) each, if the input gives the splits
    rejects: Rejects = field(default_factory=lambda: Rejects(None))
    input_bytes: int = 0
    text_bytes: int = 0
    elapsed_s: float = 0.0


def estimate_build(plan: Plan, num_documents: int, *, workers: int) -> JsonObject:
    """Return the lengths, bytes per token and encoding speed of `num_documents` documents.

    The corpus may have fewer. The key "build" has the estimated size, time and memory of the whole
    build with `workers` processes. Raises FolioError if no document has text or if a file cannot be
    read.
    """
    found = _read_partitions(plan)
    texts, _ = _choose(found, num_documents, plan)
    tokenizer = plan.tokenizer or _train_on(texts, plan.recipe)
    tokenizer.start_fast_backend()
    try:
        lengths, encode_s, num_lost = _count_tokens(plan.recipe, tokenizer, texts)
    except BackendMismatch:  # a build starts again with the reference too
        tokenizer.use_reference()
        lengths, encode_s, num_lost = _count_tokens(plan.recipe, tokenizer, texts)
    texts = get_plain_texts(texts, has_chats=plan.recipe.chat_columns is not None)
    num_tokens = int(lengths.sum())
    encoded_bytes = max(int(count_text_bytes(texts).sum()), 1)
    read_bytes = max(found.text_bytes, 1)
    # Scale the sizes of the documents that were read and encoded to the whole input.
    scale = 1 + plan.num_bytes_left_out / max(plan.count_input_bytes(), 1)
    total_bytes = round(scale * sum(plan.partition_bytes()) * (found.text_bytes / max(found.input_bytes, 1)))
    total_tokens = round(total_bytes * num_tokens / encoded_bytes)
    total_documents = round(total_bytes * sum(map(len, found.hashes)) / read_bytes)
    near_s, near_bytes = _measure_near_dedup(plan.recipe, texts)
    s_per_byte = found.elapsed_s / read_bytes + (encode_s + near_s) / encoded_bytes
    return {
        "documents": len(texts),
        "files": {
            "read": len(plan.input_files),
            "left_out": plan.num_files_left_out,
            "left_out_bytes": plan.num_bytes_left_out,
        },
        "tokens_per_document": describe_lengths(Counter(lengths.tolist())),
        "bytes_per_token": compute_ratio(encoded_bytes, num_tokens),
        "rejects": describe_rejects(found.rejects.counts, found.rejects.reasons.as_list(), plan.input_files),
        "filters": [describe_counts(*each) for each in zip(plan.recipe.filters, found.filters.counts, strict=True)],
        "leaks": _count_leaks(found, plan.recipe),
        "lost_characters": {"characters": num_lost, "of": pc.sum(pc.utf8_length(texts)).as_py()},
        "tokens_per_s": round(num_tokens / max(encode_s, 1e-9)),
        "engine": tokenizer.backend,  # the key that scripts read
        "build": {
            "documents": total_documents,
            "text_bytes": total_bytes,
            "tokens": total_tokens,
            "elapsed_s": round(START_S + total_bytes * s_per_byte / workers, 1),
            "disk_bytes": _estimate_disk_bytes(total_tokens, total_documents, tokenizer)
            + round(total_bytes * near_bytes / encoded_bytes),
            "memory_bytes": MAIN_MEMORY_BYTES
            + WORKER_MEMORY_BYTES * min(workers, math.ceil(scale * len(plan.partitions))),
            "workers": workers,
        },
    }


def _count_leaks(found: _ReadDocuments, recipe: Recipe) -> int:
    """Return how many texts that were read are in both splits, if the input gives the splits and no text is removed."""
    if recipe.dedup or not has_validation(recipe) or recipe.split not in ("given", "contiguous"):
        return 0
    sides = np.concatenate(found.sides)
    hashes = np.concatenate(found.hashes).view("V16").reshape(-1)
    return len(np.intersect1d(hashes[sides == TRAIN], hashes[sides == VAL]))


def _count_tokens(recipe: Recipe, tokenizer: Tokenizer, texts: pa.LargeStringArray) -> tuple[np.ndarray, float, int]:
    """Return the tokens of each of D texts, (D,) int64, the seconds of encoding, and how many characters are lost.

    Long texts are encoded in slices, and chats turn by turn, as in a build. The control tokens of turns
    are counted, those of whole documents are not. Raises BackendMismatch if the fast backend fails.
    """
    turn_ids = TurnIds(recipe, tokenizer)
    loss_counter = LossCounter(tokenizer) if tokenizer.can_lose_characters else None
    turns = turn_ids.split(texts)
    slices, first_slices = slice_texts(turns.texts, tokenizer.cuts)
    lengths = np.zeros(len(slices), np.int64)
    elapsed_s = 0.0
    for start, stop in iter_groups(slices):
        group = slices.slice(start, stop - start)
        parts = encode_group(tokenizer, group, np.zeros(len(group), bool), loss_counter)
        begin = time.perf_counter()
        for _, ends in parts:
            lengths[start:stop] += np.diff(ends, prepend=0)
        elapsed_s += time.perf_counter() - begin
    of_turns = np.add.reduceat(lengths, first_slices[:-1]) + turn_ids.count(turns.kinds)
    num_lost = loss_counter.measure().lost.total() if loss_counter else 0
    return np.add.reduceat(of_turns, turns.firsts[:-1]), elapsed_s, num_lost


def choose_documents(plan: Plan, num_documents: int) -> tuple[pa.LargeStringArray, pa.StringArray]:
    """Return the texts and languages of `num_documents` documents, chosen by the recipe's seed.

    There are fewer if not enough documents were read. Raises FolioError if no document has text or
    if a file cannot be read.
    """
    texts, languages = _choose(_read_partitions(plan), num_documents, plan)
    return get_plain_texts(texts, has_chats=plan.recipe.chat_columns is not None), languages


def _estimate_disk_bytes(num_tokens: int, num_documents: int, tokenizer: Tokenizer) -> int:
    """Return the size of the ids and tables in the work directory and in the shards."""
    bytes_per_token = np.dtype(token_dtype(tokenizer.vocab_size)).itemsize
    bytes_per_document = DOCUMENT_DTYPE.itemsize + DOC_DTYPE.itemsize + END_DTYPE.itemsize
    return 2 * num_tokens * bytes_per_token + num_documents * bytes_per_document


def _measure_near_dedup(recipe: Recipe, texts: pa.LargeStringArray) -> tuple[float, int]:
    """Return the seconds that near_dedup takes to hash `texts`, and the bytes of its files; 0 and 0 if it is off."""
    if recipe.near_dedup is None:
        return 0.0, 0
    begin = time.perf_counter()
    shingles, counts = hash_shingles(texts, recipe.near_dedup_words)
    bands = hash_bands(shingles, counts, recipe.near_dedup_bands, recipe.near_dedup_rows)
    elapsed_s = time.perf_counter() - begin
    # Documents that have a band in common need more. Assume one row of a run for each document.
    bytes_per_document = bands.shape[1] * BAND_DTYPE.itemsize + RUN_DTYPE.itemsize
    return elapsed_s, shingles.nbytes + counts.nbytes + bands.nbytes + len(texts) * bytes_per_document


def _read_partitions(plan: Plan) -> _ReadDocuments:
    """Read and clean the documents of NUM_PARTITIONS_READ partitions, chosen by the seed."""
    found = _ReadDocuments(FilterChain(plan.recipe))
    numbers = np.arange(len(plan.partitions), dtype=np.uint64)
    order = np.argsort(keyed_hash(plan.recipe.seed, numbers), kind="stable")
    sizes = plan.partition_bytes()
    decontaminator = make_decontaminator(plan.recipe, plan.evaluation_files)
    for number in order[:NUM_PARTITIONS_READ].tolist():
        begin, bytes_before = time.perf_counter(), found.text_bytes
        is_complete = _read_partition(plan, number, found, decontaminator)
        found.elapsed_s += time.perf_counter() - begin
        # The input size of a partially read partition is unknown. Assume that it is the text size.
        found.input_bytes += sizes[number] if is_complete else found.text_bytes - bytes_before
    return found


def _read_partition(plan: Plan, number: int, found: _ReadDocuments, decontaminator: Decontaminator | None) -> bool:
    """Add the documents of a partition to `found`. Returns False if the limits stopped it."""
    spans = ((plan.input_files[span.file_number], span) for span in plan.partitions[number].spans)
    text_bytes = num_documents = 0
    names = {file.number: file.name for file in plan.input_files}
    count = partial(count_dropped, found.rejects, CONTAMINATED, names=names)
    documents = read_documents(spans, plan.recipe, found.rejects, Counter(), found.filters)
    for batch, sides in decontaminate(documents, decontaminator, plan.recipe, count):
        sizes = count_plain_bytes(batch.column("text"), has_chats=plan.recipe.chat_columns is not None)
        has_text = sizes > 0
        if not has_text.all():
            count_dropped(found.rejects, "empty", batch.filter(pa.array(~has_text)), names)
        batch = batch.filter(pa.array(has_text))
        texts = batch.column("text")
        found.texts.append(texts)
        found.languages.append(batch.column("lang"))
        found.hashes.append(hash_contents(texts))
        found.sides.append(sides[has_text])
        batch_bytes = int(sizes.sum())
        found.text_bytes += batch_bytes
        text_bytes, num_documents = text_bytes + batch_bytes, num_documents + len(texts)
        if text_bytes > MAX_TEXT_BYTES or num_documents > MAX_DOCUMENTS:
            return False
    return True


def _choose(found: _ReadDocuments, num_documents: int, plan: Plan) -> tuple[pa.LargeStringArray, pa.StringArray]:
    """Return the texts and languages of the documents with the smallest keyed content hashes."""
    texts = pa.concat_arrays(found.texts) if found.texts else pa.array([], pa.large_string())
    found.texts.clear()  # they may be documents of 64 MB
    if not len(texts):
        counts = "; ".join(format_counts(found.rejects.counts)) or "the input has no records"
        reasons = found.rejects.reasons.as_list()
        raise FolioError(explain_no_document(plan.recipe.corpus, counts, reasons, plan.input_files))
    if len(texts) <= num_documents:  # a copy of all would take as much memory again
        return texts, pa.concat_arrays(found.languages)
    first_halves = np.ascontiguousarray(np.concatenate(found.hashes)[:, :8]).view("<u8").reshape(-1)
    order = np.argsort(keyed_hash(plan.recipe.seed, first_halves), kind="stable")
    rows = pa.array(np.sort(order[:num_documents]))
    return texts.take(rows), pa.concat_arrays(found.languages).take(rows)


def _train_on(texts: pa.LargeStringArray, recipe: Recipe) -> Tokenizer:
    """Train a tokenizer on `texts`. The build trains on more text, so it will need fewer tokens."""
    has_chats = recipe.chat_columns is not None
    if recipe.tokenizer == "char":
        plain, _ = slice_texts(get_plain_texts(texts, has_chats=has_chats), "characters")
        return characters.train_char((text.as_py() for text in plain), has_eot=recipe.eot == "append")
    return sentencepiece_bpe.train(_iter_training_texts(texts, recipe), num_pieces=recipe.num_pieces)


def _iter_training_texts(texts: pa.LargeStringArray, recipe: Recipe) -> Iterator[str]:
    """Yield the texts until they have `sample_bytes` characters, since the trainer needs several times their size."""
    turns = split_turns(texts) if recipe.chat_columns is not None else None
    num_left = recipe.sample_bytes
    for row in range(len(texts)):
        text = texts[row].as_py() if turns is None else get_turn_lines(turns, row)
        yield text[:num_left]
        num_left -= len(text)
        if num_left <= 0:
            break


def format_estimate(estimate: JsonObject) -> list[str]:
    """Return the lines that `preprocess estimate` prints for the result of `estimate_build`."""
    lengths, build = estimate["tokens_per_document"], estimate["build"]
    quantiles = ", ".join(f"{name} {lengths[name]:,}" for name in ("mean", "median", "p05", "p95", "max"))
    disk_gb, memory_gb = build["disk_bytes"] / 1e9, build["memory_bytes"] / 1e9
    files = estimate["files"]
    left_out = format_quantity(files["left_out"], "remote file")
    return [
        *(
            [
                f"files       {format_quantity(files['read'], 'file')} were read; a build also copies "
                f"{left_out} ({format_quantity(files['left_out_bytes'], 'byte')})"
            ]
            if files["left_out"]
            else []
        ),
        f"documents   {estimate['documents']:,} were encoded, {estimate['bytes_per_token']:.2f} bytes per token",
        f"tokens per document: {quantiles}",
        *([f"rejects     {estimate['rejects']}"] if estimate["rejects"] else []),
        *([f"warning     {describe_leaks(estimate['leaks'])}"] if estimate["leaks"] else []),
        *format_filter_counts(estimate["filters"]),
        *_format_loss(estimate["lost_characters"]),
        f"encoding    {estimate['tokens_per_s']:,} tokens/s with {estimate['engine']}, one thread",
        f"the build   about {format_quantity(build['documents'], 'document')}, "
        f"{format_quantity(build['text_bytes'], 'byte')} of text, {format_quantity(build['tokens'], 'token')}, "
        "before deduplication",
        f"will need   about {build['elapsed_s']:,} s with {format_quantity(build['workers'], 'worker')}, "
        f"{disk_gb:,.2f} GB of disk, "
        f"{memory_gb:,.2f} GB of memory",
    ]


def _format_loss(loss: JsonObject) -> list[str]:
    if not loss["characters"]:
        return []
    return [f"lost        {loss['characters']:,} of {loss['of']:,} characters, which are not in the decoded tokens"]
