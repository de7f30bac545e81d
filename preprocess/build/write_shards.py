"""Encoded documents → shards. Most of it is copying: control tokens have their places already, and only get their ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.build.engines.local import InProcess, ProcessPool, Task
from preprocess.build.shard_layout import SIDE_OF_SPLIT, Segment, ShardLayout
from preprocess.build.work_dir import WorkFolder
from preprocess.progress import Progress
from preprocess.shards.files import parse_json, readable_json, write_durable
from preprocess.shards.format import CONTROL_FIELDS, DOC_DTYPE, SPLITS, map_array, token_dtype
from preprocess.shards.writer import ShardPlan, ShardSealer, WriteOffset, create_shard, write_documents

CHUNK_TOKENS = 4 << 20


@dataclass(frozen=True)
class Target:
    """What is the same for every segment of a build."""

    work: WorkFolder
    folder: Path
    vocab_size: int
    id_dtype: str  # of the ids in the work folder
    has_bos: bool


@dataclass(frozen=True)
class Tables:
    """What turns the numbers of a partition into those of the build."""

    lookups: dict[str, np.ndarray]
    languages: np.ndarray  # number in the partition's list → number in `.docs`; the last entry, which −1 picks, is 0
    positions_before: np.ndarray  # by source


def write_segment(target: Target, plan: ShardPlan, segment: Segment, tables: Tables) -> int:
    """Write the documents of `segment` at their place; returns the largest id."""
    work = target.work
    rows = np.flatnonzero(work.sides(segment.partition) == SIDE_OF_SPLIT[segment.split])[segment.first : segment.last]
    documents, lengths = work.documents(segment.partition), work.lengths(segment.partition)
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = map_array(work.file(segment.partition, "ids"), np.dtype(target.id_dtype))
    place, max_id = segment.place, -1
    for chosen in _chunks(rows, lengths):
        table = documents[chosen]
        out = _gather(ids, ends, lengths, chosen).astype(token_dtype(target.vocab_size), copy=False)
        new_ends = np.cumsum(lengths[chosen], dtype=np.int64)
        _put_control_ids(out, new_ends - lengths[chosen], table, target, tables)
        docs = _doc_table(table, tables)
        max_id = max(
            max_id, write_documents(target.folder, plan, place, out, new_ends, docs, vocab_size=target.vocab_size)
        )
        place = WriteOffset(place.num_tokens + len(out), place.num_documents + len(chosen))
    return max_id


def _chunks(rows: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """`rows` in runs that span about CHUNK_TOKENS of the partition."""
    spans = np.cumsum(lengths, dtype=np.int64)[rows] // CHUNK_TOKENS
    boundaries = np.flatnonzero(np.diff(spans)) + 1
    for first, last in itertools.pairwise([0, *boundaries.tolist(), len(rows)]):
        yield rows[first:last]


def _gather(ids: np.ndarray, ends: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The ids of the documents `rows`, which rise: a copy of their own."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    span = ids[int(ends[first] - lengths[first]) : int(ends[last - 1])]
    if last - first == len(rows):
        return np.array(span)
    is_chosen = np.zeros(last - first, bool)
    is_chosen[rows - first] = True
    return span[np.repeat(is_chosen, lengths[first:last])]


def _put_control_ids(out: np.ndarray, starts: np.ndarray, table: np.ndarray, target: Target, tables: Tables) -> None:
    places = starts + target.has_bos
    for name in CONTROL_FIELDS if tables.lookups else ():
        has = table[name] >= 0
        out[places[has]] = tables.lookups[name][table[name][has]]
        places = places + has


def _doc_table(table: np.ndarray, tables: Tables) -> np.ndarray:
    docs = np.empty(len(table), DOC_DTYPE)
    docs["hash"], docs["source"] = table["hash"], table["source"]
    docs["lang"] = tables.languages[table["lang"]]
    docs["position"] = table["position"] + tables.positions_before[table["source"]]
    return docs


def assemble(
    target: Target,
    layout: ShardLayout,
    receipts: list[dict[str, Any]],
    pool: InProcess | ProcessPool,
    progress: Progress,
) -> dict[str, list[dict[str, Any]]]:
    """Write all shards into `target.folder`; the manifest's `shards` of each split.

    A shard that an earlier attempt has finished, which its receipt says, is not written again.
    """
    entries: dict[int, dict[str, Any]] = {}
    with progress.bar("assemble", total=sum(plan.num_tokens for plan in layout.shards), unit="tokens") as bar:
        for index, plan in enumerate(layout.shards):
            if (entry := _finished(target, plan)) is not None:
                entries[index] = entry
                bar.update(plan.num_tokens)
        todo = [index for index in range(len(layout.shards)) if index not in entries]
        open_shards: dict[int, _OpenShard] = {}
        for task, max_id in pool.run(_tasks(target, layout, receipts, todo, open_shards)):
            index, number = task.key
            shard = open_shards[index]
            bar.update(shard.segments[number].num_tokens)
            if shard.note(number, max_id):
                entries[index] = open_shards.pop(index).finish()
                write_durable(_receipt(target, shard.plan), readable_json(entries[index]))
    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for index, plan in enumerate(layout.shards):
        by_split[plan.split].append(entries[index])
    return by_split


def _tasks(
    target: Target,
    layout: ShardLayout,
    receipts: list[dict[str, Any]],
    todo: list[int],
    open_shards: dict[int, _OpenShard],
) -> Iterator[Task]:
    for index in todo:
        plan = layout.shards[index]
        create_shard(target.folder, plan, vocab_size=target.vocab_size)
        open_shards[index] = _OpenShard(target, plan, layout.segments[index])
        for number, segment in enumerate(layout.segments[index]):
            tags = receipts[segment.partition]["lists"]["lang"]
            languages = np.array([*(layout.languages.get(tag, 0) for tag in tags), 0], np.uint32)
            tables = Tables(layout.lookups[segment.partition], languages, layout.positions_before[segment.partition])
            label = f"shard {plan.split}-{plan.number:05d} of partition {segment.partition}"
            yield Task(label, write_segment, (target, plan, segment, tables), (index, number))


class _OpenShard:
    """A shard that is being written, hashed from the front as far as its segments are there without a gap."""

    def __init__(self, target: Target, plan: ShardPlan, segments: list[Segment]) -> None:
        self.plan, self.segments = plan, segments
        self._sealer = ShardSealer(target.folder, plan, vocab_size=target.vocab_size)
        self._is_written = [False] * len(segments)
        self._next, self._max_id = 0, -1

    def note(self, number: int, max_id: int) -> bool:
        """Segment `number` is written; whether all are."""
        self._is_written[number] = True
        self._max_id = max(self._max_id, max_id)
        before = self._next
        while self._next < len(self.segments) and self._is_written[self._next]:
            self._next += 1
        if self._next > before:
            last = self.segments[self._next - 1]
            self._sealer.advance(
                last.place.num_tokens + last.num_tokens, last.place.num_documents + last.last - last.first
            )
        return self._next == len(self.segments)

    def finish(self) -> dict[str, Any]:
        return self._sealer.finish(self._max_id)


def _receipt(target: Target, plan: ShardPlan) -> Path:
    return target.work.path / f"{plan.split}-{plan.number:05d}.shard.json"


def _finished(target: Target, plan: ShardPlan) -> dict[str, Any] | None:
    """The entry of a shard that was written, hashed and synced before, if its files still have their sizes."""
    try:
        entry: dict[str, Any] = parse_json(_receipt(target, plan).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    for suffix, size_bytes in plan.sizes(target.vocab_size).items():
        path = plan.path(target.folder, suffix)
        if not path.is_file() or path.stat().st_size != size_bytes:
            return None
    return entry
