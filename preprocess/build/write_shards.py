"""The phase that writes the shards: copy documents to their offsets, and fill in control ids.

A task writes one segment (shard_layout.py). It copies ids of a partition to a file that already has
its final size. The documents have the id 0 for each author, city and year; a task replaces it by
the id of the control token. The main process hashes each shard from the front as far as all
segments are written.

On several machines a task writes a whole shard, and hashes it. Machines that write to the same file
of a network file system would have to agree about the pages at the boundaries of their segments,
and the main process would have to read all shards over the network.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.build.engines.interface import Engine, Task
from preprocess.build.id_maps import IdMaps
from preprocess.build.receipts import read_receipt, write_receipt
from preprocess.build.shard_layout import SIDE_OF_SPLIT, PlannedShard, Segment, ShardLayout
from preprocess.build.work_dir import WorkDir
from preprocess.progress import Bar, Progress
from preprocess.shards.files import make_partial_path, sha256_file
from preprocess.shards.format import CONTROL_FIELDS, DOC_DTYPE, SPLITS, token_dtype
from preprocess.shards.manifest import ShardEntry
from preprocess.shards.writer import (
    EncodedDocuments,
    ShardPlan,
    ShardSealer,
    WriteOffset,
    create_shard,
    write_documents,
)

PART_TOKENS = 4 << 20  # copied at once


@dataclass(frozen=True)
class ShardOutput:
    """Where the shards are copied from and to, and their format."""

    work_dir: WorkDir
    directory: Path
    vocab_size: int  # control tokens included
    stored_dtype: str  # of the ids in the work directory
    has_bos: bool  # each document begins with a begin-of-text token


def write_shards(
    output: ShardOutput, layout: ShardLayout, engine: Engine, progress: Progress
) -> dict[str, list[ShardEntry]]:
    """Write all shards to `output.directory`, and return the manifest's entries of each split.

    A shard that an interrupted build has finished is not written again.
    """
    entries: dict[int, ShardEntry] = {}
    with progress.bar("write_shards", total=sum(s.plan.num_tokens for s in layout.shards), unit="tokens") as bar:
        for index, shard in enumerate(layout.shards):
            if (entry := _find_finished(output, shard.plan)) is not None:
                entries[index] = entry
                bar.update(shard.plan.num_tokens)
        unfinished = [index for index in range(len(layout.shards)) if index not in entries]
        write = _write_whole_shards if engine.has_several_machines else _write_segments
        for index, entry in write(output, layout, unfinished, engine, bar):
            entries[index] = entry
            write_receipt(_receipt_path(output, layout.shards[index].plan), entry)
    by_split: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
    for index, shard in enumerate(layout.shards):
        by_split[shard.plan.split].append(entries[index])
    return by_split


def _receipt_path(output: ShardOutput, plan: ShardPlan) -> Path:
    return plan.path(output.work_dir.path, "shard.json")


def _find_finished(output: ShardOutput, plan: ShardPlan) -> ShardEntry | None:
    """Return the manifest's entry of a shard, or None if the shard is not finished.

    A shard is finished if it has a receipt and its files have the hashes in the receipt. The hashes
    are computed again, because the disk may have damaged the files since the interruption.
    """
    entry = read_receipt(_receipt_path(output, plan), ShardEntry)
    if entry is None:
        return None
    hashes = entry.hashes()
    for suffix, size_bytes in plan.sizes(output.vocab_size).items():
        path = plan.path(output.directory, suffix)
        if not path.is_file() or path.stat().st_size != size_bytes or sha256_file(path) != hashes.get(suffix):
            return None
    return entry


def _write_segments(
    output: ShardOutput, layout: ShardLayout, unfinished: list[int], engine: Engine, bar: Bar
) -> Iterator[tuple[int, ShardEntry]]:
    """Write the shards with the indices `unfinished`, one task per segment, and yield (index, entry) of each."""
    open_shards: dict[int, _OpenShard] = {}
    for task, max_id in engine.run(_make_tasks(output, layout, unfinished, open_shards)):
        index, number = task.key
        bar.update(layout.shards[index].segments[number].num_tokens)
        open_shards[index].add(number, max_id)
        if open_shards[index].is_complete():
            yield index, open_shards.pop(index).finish()


def _make_tasks(
    output: ShardOutput, layout: ShardLayout, unfinished: list[int], open_shards: dict[int, _OpenShard]
) -> Iterator[Task]:
    """Yield the tasks that write the segments of the shards with the indices `unfinished`.

    The files of a shard are created, and the shard is added to `open_shards`, before its first
    task.
    """
    for index in unfinished:
        shard = layout.shards[index]
        create_shard(output.directory, shard.plan, vocab_size=output.vocab_size)
        open_shards[index] = _OpenShard(output, shard)
        for number, segment in enumerate(shard.segments):
            partition = segment.chunk.partition
            label = f"shard {shard.plan.split}-{shard.plan.number:05d} of partition {partition}"
            arguments = (output, shard.plan, segment, layout.id_maps.make(partition))
            yield Task(label, write_segment, arguments, key=(index, number))


def _write_whole_shards(
    output: ShardOutput, layout: ShardLayout, unfinished: list[int], engine: Engine, bar: Bar
) -> Iterator[tuple[int, ShardEntry]]:
    """Write the shards with the indices `unfinished`, one task per shard, and yield (index, entry) of each."""

    def make_tasks() -> Iterator[Task]:
        for index in unfinished:
            shard = layout.shards[index]
            id_maps = {s.chunk.partition: layout.id_maps.make(s.chunk.partition) for s in shard.segments}
            label = f"shard {shard.plan.split}-{shard.plan.number:05d}"
            yield Task(label, write_whole_shard, (output, shard, id_maps), key=index)

    for task, entry in engine.run(make_tasks()):
        bar.update(layout.shards[task.key].plan.num_tokens)
        yield task.key, entry


def write_whole_shard(output: ShardOutput, shard: PlannedShard, id_maps: Mapping[int, IdMaps]) -> ShardEntry:
    """Write a shard in a new folder, move its files to their directory, and return its entry in the manifest.

    `id_maps`: of each partition that the shard has documents of.
    """
    folder = make_partial_path(shard.plan.path(output.work_dir.path, "shard"))
    folder.mkdir()
    inside = dataclasses.replace(output, directory=folder)
    create_shard(folder, shard.plan, vocab_size=output.vocab_size)
    open_shard = _OpenShard(inside, shard)
    for number, segment in enumerate(shard.segments):
        open_shard.add(number, write_segment(inside, shard.plan, segment, id_maps[segment.chunk.partition]))
    entry = open_shard.finish()
    for path in folder.iterdir():
        os.replace(path, output.directory / path.name)
    folder.rmdir()
    return entry


class _OpenShard:
    """A shard that is being written. It is hashed up to the first segment that is missing."""

    def __init__(self, output: ShardOutput, shard: PlannedShard) -> None:
        self._segments = shard.segments
        self._sealer = ShardSealer(output.directory, shard.plan, vocab_size=output.vocab_size)
        self._is_written = [False] * len(shard.segments)
        self._num_hashed = 0  # segments
        self._max_id = -1

    def add(self, number: int, max_id: int) -> None:
        """Record that segment `number` is written, and hash the shard up to the first missing one.

        `max_id`: the largest token id in the segment.
        """
        self._is_written[number] = True
        self._max_id = max(self._max_id, max_id)
        before = self._num_hashed
        while self._num_hashed < len(self._segments) and self._is_written[self._num_hashed]:
            self._num_hashed += 1
        if self._num_hashed > before:
            segment = self._segments[self._num_hashed - 1]
            self._sealer.advance(
                segment.offset.num_tokens + segment.num_tokens,
                segment.offset.num_documents + segment.num_documents,
            )

    def is_complete(self) -> bool:
        return self._num_hashed == len(self._segments)

    def finish(self) -> ShardEntry:
        """Flush the shard to the disk, and return its entry in the manifest."""
        return self._sealer.finish(self._max_id)


def write_segment(output: ShardOutput, plan: ShardPlan, segment: Segment, id_maps: IdMaps) -> int:
    """Write the documents of one segment to the shard `plan`, and return their largest token id."""
    work_dir = output.work_dir
    rows = np.flatnonzero(work_dir.map_sides(segment.chunk) == SIDE_OF_SPLIT[segment.split])
    documents, lengths = work_dir.map_documents(segment.chunk), work_dir.map_lengths(segment.chunk)
    ends = segment.first_token + np.cumsum(lengths, dtype=np.int64)  # (D,) in the ids of the partition
    ids = _StoredIds(work_dir.file(segment.chunk.partition, "ids"), np.dtype(output.stored_dtype), ends, lengths)
    mask = _StoredIds(work_dir.file(segment.chunk.partition, "mask"), np.dtype(bool), ends, lengths)
    offset, max_id = segment.offset, -1
    for chosen in _split_into_parts(rows, ends):
        table = documents[chosen]
        part_ids = ids.read(chosen).astype(token_dtype(output.vocab_size), copy=False)
        part_ends = np.cumsum(lengths[chosen], dtype=np.int64)
        _fill_in_control_ids(part_ids, part_ends - lengths[chosen] + output.has_bos, table, id_maps)
        docs = _make_doc_table(table, id_maps)
        encoded = EncodedDocuments(part_ids, part_ends, docs, mask.read(chosen) if plan.has_mask else None)
        part_max_id = write_documents(output.directory, plan, offset, encoded, vocab_size=output.vocab_size)
        max_id = max(max_id, part_max_id)
        offset = WriteOffset(offset.num_tokens + len(part_ids), offset.num_documents + len(chosen))
    return max_id


def _split_into_parts(rows: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    """Yield consecutive parts of `rows`. A part spans about PART_TOKENS tokens of the partition."""
    boundaries = np.flatnonzero(np.diff(ends[rows] // PART_TOKENS)) + 1
    for first, last in itertools.pairwise([0, *boundaries.tolist(), len(rows)]):
        yield rows[first:last]


@dataclass(frozen=True)
class _StoredIds:
    """The ids, or the loss mask, of D consecutive documents of a partition, in a file of the work directory."""

    path: Path
    dtype: np.dtype
    ends: np.ndarray  # (D,) int64, exclusive ends of the documents in the file, in tokens
    lengths: np.ndarray  # (D,), in tokens

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the values of the documents `rows`, which are in ascending order."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        begin, end = int(self.ends[first] - self.lengths[first]), int(self.ends[last - 1])
        # Read and not mapped: the pages of a mapped file would count as memory of this process.
        span = np.fromfile(self.path, self.dtype, end - begin, offset=begin * self.dtype.itemsize)
        if last - first == len(rows):
            return span
        is_chosen = np.zeros(last - first, bool)
        is_chosen[rows - first] = True
        return span[np.repeat(is_chosen, self.lengths[first:last])]


def _fill_in_control_ids(ids: np.ndarray, offsets: np.ndarray, table: np.ndarray, id_maps: IdMaps) -> None:
    """Write the ids of author, city and year to `ids`.

    `offsets`: (D,), the index in `ids` of each document's author, city or year, whichever is first.
    """
    for name in CONTROL_FIELDS if id_maps.control_ids else ():
        has_value = table[name] >= 0
        ids[offsets[has_value]] = id_maps.control_ids[name][table[name][has_value]]
        offsets = offsets + has_value


def _make_doc_table(table: np.ndarray, id_maps: IdMaps) -> np.ndarray:
    """Return what `.docs` contains for the documents in `table`: (D,) of DOC_DTYPE."""
    docs = np.empty(len(table), DOC_DTYPE)
    docs["hash"], docs["source"] = table["hash"], table["source"]
    docs["lang"] = id_maps.languages[table["lang"]]
    docs["position"] = table["position"] + id_maps.position_offsets[table["source"] - id_maps.first_file]
    return docs
