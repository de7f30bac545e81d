"""The story of a build: plan, prepare, decide, assemble, seal.

Everything is written aside, in a hidden folder beside the build; the manifest comes last; one rename makes the build
appear. A build that fails or is killed leaves nothing that looks finished.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.assemble import Assembled, Decided, assemble, language_numbers
from preprocess.build_log import BuildLog, made_with
from preprocess.documents import SCHEMA, make_batch, table_text_bytes
from preprocess.download import find_file
from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.publish import finish_interrupted_replace, is_there_already, one_at_a_time, publish
from preprocess.recipe import Recipe
from preprocess.shards import format as shard_format
from preprocess.shards.files import readable_json, sha256_bytes, write_durable
from preprocess.shards.format import BUILD_LOG, CONTROL_FIELDS, MANIFEST, STATS, TOKENIZER_DIR
from preprocess.stages.authors import assign_ids
from preprocess.stages.clean import clean
from preprocess.stages.dedup import content_hashes, first_occurrences, group_keys
from preprocess.stages.read import read_text_file
from preprocess.stages.split import cut_document, exact_split
from preprocess.stats import describe_authors, describe_languages, describe_lengths, ratio
from preprocess.synthetic import VOCABULARY_FILE, generate_pairs, vocabulary_file
from preprocess.tokenizers import make_tokenizer

PAIRS_PER_BATCH = 4096


@dataclass(frozen=True)
class Plan:
    """What is to be built, from which files."""

    name: str
    recipe: Recipe
    paths: list[Path]  # of the inputs, each vouched for
    sources: list[dict[str, Any]]  # their entries in the manifest


@dataclass(frozen=True)
class Prepared:
    """All documents as read and cleaned, in order of source and position."""

    table: pa.Table
    hashes: np.ndarray  # (D, 16) uint8
    in_val: np.ndarray | None  # (D,) bool where reading decides the side
    rule_counts: dict[str, int]


def build(recipe: Recipe, folder: Path, *, name: str, source: Path | None, replace: bool, progress: Progress) -> bool:
    """Make the build of `recipe` in `folder`; False where it is there already.

    Raises MisuseError or FolioError with one line that says what to do; whatever was in `folder` is then untouched.
    """
    # Resolved, so that a link and the folder it leads to share one lock, and the build lands where the link leads.
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder):
        finish_interrupted_replace(folder)
        job = plan(recipe, source, progress, name=name)
        if is_there_already(folder, recipe.resolved(), job.sources, replace=replace):
            return False
        aside = folder.parent / f".{folder.name}.partial"
        shutil.rmtree(aside, ignore_errors=True)  # of an attempt that was killed: nobody else holds the lock
        try:
            (aside / TOKENIZER_DIR).mkdir(parents=True)
            log = BuildLog()
            prepared = prepare(job, progress, log)
            decided = decide(recipe, prepared, progress, log)
            assembled = assemble(recipe, decided, aside, progress, log)
            seal(job, prepared, decided, assembled, aside, log)
            publish(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return True


def plan(recipe: Recipe, source: Path | None, progress: Progress, *, name: str) -> Plan:
    """The inputs, found and checked, in the recipe's order."""
    if source is not None and len(recipe.files) != 1:
        raise MisuseError(f"--source stands for one file, {recipe.corpus} has {len(recipe.files)}; leave it out")
    paths = [find_file(recipe.corpus, file, source=source, progress=progress) for file in recipe.files]
    sources = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in recipe.files]
    if recipe.format == "synthetic":
        vocabulary = vocabulary_file()
        sources = [{"name": VOCABULARY_FILE, "bytes": len(vocabulary), "sha256": sha256_bytes(vocabulary)}]
    return Plan(name, recipe, paths, sources)


def prepare(job: Plan, progress: Progress, log: BuildLog) -> Prepared:
    """Read, clean, cut and fingerprint every input."""
    recipe = job.recipe
    progress.say(f"reading {recipe.corpus}")
    batches, sides = [], []
    counts: dict[str, int] = {}
    with log.phase("prepare"):
        for batch in _read(recipe, job.paths):
            batch, changed = clean(batch, recipe.clean)
            counts = {rule: counts.get(rule, 0) + n for rule, n in changed.items()}
            if recipe.split == "contiguous":
                passage_characters = recipe.passage_characters if recipe.document == "passage" else None
                batch, in_val = cut_document(batch, val_fraction=recipe.val_fraction, passage_characters=passage_characters)
                sides.append(in_val)
            batches.append(batch)
        table = pa.Table.from_batches(batches, schema=SCHEMA)
        hashes = [content_hashes(batch.column("text")) for batch in batches]
    return Prepared(table, np.concatenate(hashes or [np.empty((0, 16), np.uint8)]), np.concatenate(sides) if sides else None, counts)


def _read(recipe: Recipe, paths: list[Path]) -> Iterator[pa.RecordBatch]:
    if recipe.format == "synthetic":
        pairs = generate_pairs(recipe.num_pairs, seed=recipe.seed)
        while chunk := list(itertools.islice(pairs, PAIRS_PER_BATCH)):
            yield _pair_batch(chunk)
    for number, path in enumerate(paths):
        data = path.read_bytes()
        if sha256_bytes(data) != recipe.files[number].sha256:
            raise FolioError(f"{path} changed while it was read; let it rest and run the same command again")
        yield read_text_file(data, name=str(path), source=number, recipe=recipe)


def _pair_batch(pairs: list[Any]) -> pa.RecordBatch:
    """Both sides of each pair, English first, as documents of one group."""
    columns: dict[str, Any] = {
        "text": [text for pair in pairs for text in (pair.en, pair.ru)],
        "lang": ["en", "ru"] * len(pairs),
        "position": [2 * pair.number + side for pair in pairs for side in (0, 1)],
        "group": [str(pair.number) for pair in pairs for _ in (0, 1)],
    }
    for field in CONTROL_FIELDS:
        columns[field] = [getattr(pair, field) for pair in pairs for _ in (0, 1)]
    return make_batch({**columns, "source": 0}, 2 * len(pairs))


def decide(recipe: Recipe, prepared: Prepared, progress: Progress, log: BuildLog) -> Decided:
    """Which documents stay, on which side, and what every id means."""
    with log.phase("decide"):
        full = table_text_bytes(prepared.table) > 0
        keep = full & (first_occurrences(prepared.hashes) if recipe.dedup else True)
        if not keep.any():
            raise FolioError(
                f"{recipe.corpus} is empty: of {len(full):,} documents read none holds text; give it text, or check its cleaning rules"
            )
        rows = np.flatnonzero(keep)
        table, hashes = prepared.table.take(pa.array(rows)), prepared.hashes[rows]
        in_val = _sides(recipe, prepared, table, hashes, rows)
        if recipe.tokenizer == "sentencepiece":
            progress.say(f"training {recipe.num_pieces:,} SentencePiece pieces on {int((~in_val).sum()):,} training documents")
        tokenizer = make_tokenizer(recipe, _texts(table, ~in_val), _texts(table, np.ones(len(rows), bool)))
        control_ids: dict[str, int] = {}
        front = np.empty((len(rows), 0), np.int64)
        if recipe.authors:
            control_ids, front = assign_ids(table, tokenizer.vocab_size, tokenizer.special_tokens)
        if recipe.bos and tokenizer.bos_id is not None:
            front = np.insert(front, 0, tokenizer.bos_id, axis=1)
    num_empty = int((~full).sum())
    return Decided(table, hashes, in_val, tokenizer, control_ids, front, num_empty, len(full) - num_empty - len(rows))


def _sides(recipe: Recipe, prepared: Prepared, table: pa.Table, hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if prepared.in_val is None:
        return exact_split(group_keys(table.column("group").combine_chunks(), hashes), recipe.val_fraction, seed=recipe.seed)
    in_val = prepared.in_val[rows]
    if in_val.all() or not in_val.any():
        side = "training" if in_val.all() else "validation"
        raise FolioError(
            f"{recipe.corpus} is too short to cut: its {side} side would be empty; give it more text or another --val-fraction"
        )
    return in_val


def _texts(table: pa.Table, mask: np.ndarray) -> Iterator[str]:
    for chunk in table.column("text").filter(pa.array(mask)).chunks:
        for text in chunk:
            yield text.as_py()


def seal(job: Plan, prepared: Prepared, decided: Decided, assembled: Assembled, aside: Path, log: BuildLog) -> None:
    """Tokenizer in, stats.json, build_log.json, and last manifest.json."""
    tokenizer = decided.tokenizer
    for file_name, data in tokenizer.files.items():
        write_durable(aside / TOKENIZER_DIR / file_name, data)
    stats = readable_json(_stats(job.recipe, prepared, decided, assembled))
    write_durable(aside / STATS, stats)
    write_durable(aside / BUILD_LOG, readable_json(log.finish(int(table_text_bytes(decided.table).sum()))))
    fields = {
        "format": shard_format.FORMAT,
        "version": shard_format.VERSION,
        "name": job.name,
        "dtype": shard_format.token_dtype(decided.vocab_size),
        "vocab_size": decided.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eot_id": tokenizer.eot_id,
        "pad_id": tokenizer.pad_id,
        "unk_id": tokenizer.unk_id,
        "special_tokens": {**tokenizer.special_tokens, **decided.control_ids},
        "tokenizer": {
            "kind": tokenizer.kind,
            "files": {file_name: sha256_bytes(data) for file_name, data in tokenizer.files.items()},
            "settings": tokenizer.settings,
        },
        "splits": assembled.splits,
        "recipe": job.recipe.resolved(),
        "sources": job.sources,
        "languages": {str(number): tag for tag, number in language_numbers(decided.table).items()},
        "stats_sha256": sha256_bytes(stats),
        "made_with": made_with(job.recipe.tokenizer),
    }
    write_durable(aside / MANIFEST, readable_json(shard_format.seal(fields)))


def _stats(recipe: Recipe, prepared: Prepared, decided: Decided, assembled: Assembled) -> dict[str, Any]:
    # Lengths come by split and are put in the table's order: the other way round would copy the whole text.
    table, sizes = decided.table, table_text_bytes(decided.table)
    all_lengths = np.empty(len(sizes), np.int64)
    all_lengths[~decided.in_val], all_lengths[decided.in_val] = assembled.lengths["train"], assembled.lengths["val"]
    num_tokens, num_bytes = int(all_lengths.sum()), int(sizes.sum())
    stats: dict[str, Any] = {
        "documents": {
            "read": prepared.table.num_rows,
            "empty": decided.num_empty,
            "duplicates": decided.num_duplicates,
            "kept": table.num_rows,
        },
        "clean": prepared.rule_counts,
        "split": {"mode": recipe.split, "val_fraction": recipe.val_fraction},
        "splits": {split: {key: entry[key] for key in ("documents", "tokens", "text_bytes")} for split, entry in assembled.splits.items()},
        "tokens": num_tokens,
        "text_bytes": num_bytes,
        "bytes_per_token": ratio(num_bytes, num_tokens),
        "tokens_per_document": {split: describe_lengths(lengths) for split, lengths in assembled.lengths.items()},
        "languages": describe_languages(table, all_lengths, sizes),
        "authors": describe_authors(table),
        "vocabulary": {"tokenizer": decided.tokenizer.vocab_size, "control": len(decided.control_ids), "vocab_size": decided.vocab_size},
    }
    if decided.tokenizer.kind == "sentencepiece":
        # SentencePiece spells the space with U+2581: where a text has that sign, decoding gives a space.
        spelled = [pc.count_substring(chunk, "\u2581") for chunk in table.column("text").chunks]
        stats["documents_with_u2581"] = sum(int(pc.sum(pc.greater(c, 0)).as_py() or 0) for c in spelled)
    return stats
