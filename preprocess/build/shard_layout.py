"""The phase that computes the shard and the offset of every document, before any shard is written.

The problem: many workers should write shards at once, but the bytes must not depend on the number
of workers or on their speed.

The idea: the length of every document is already known (prepare.py), so the offset of a document in
its shard is the sum of the lengths before it. This phase computes the offsets in one pass over the
document tables, in reading order. The same pass assigns ids to the control tokens, because their
ids depend on the order of first appearance. As a result, each shard consists of segments with known
offsets; a segment is a run of documents of one partition. A worker writes a segment at its offset
in the file without waiting for other segments, so the order of writing does not matter.

The cost: the pass reads 71 bytes per document, in chunks. It reads no text and no ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from preprocess.build.document_counts import NUM_YEARS, DocumentCounts
from preprocess.build.id_maps import IdMapper, PositionOffsets, assign_control_ids
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.receipts import PartitionValues
from preprocess.build.work_dir import DROPPED, Chunk, iter_chunks
from preprocess.chats.templates import number_chat_tokens
from preprocess.documents import TRAIN, VAL
from preprocess.shards.control_tokens import ControlTokenIds
from preprocess.shards.format import CONTROL_FIELDS, SPLITS
from preprocess.shards.writer import ShardPlan, WriteOffset, cut_shards

SIDE_OF_SPLIT = {"train": TRAIN, "val": VAL}


@dataclass(frozen=True)
class Segment:
    """The documents of one split in a range of rows of one partition, all in one shard."""

    chunk: Chunk  # begins and ends with a document of the split
    split: str
    first_token: int  # of the chunk, in the ids of the partition
    num_documents: int
    num_tokens: int
    offset: WriteOffset  # in the shard


@dataclass(frozen=True)
class PlannedShard:
    """A shard, and the segments that fill it, in order."""

    plan: ShardPlan
    segments: list[Segment]


@dataclass(frozen=True)
class ShardLayout:
    """The contents of all shards, and the vocabulary and counts that follow from them."""

    shards: list[PlannedShard]  # train first
    id_maps: IdMapper
    control_ids: dict[str, int]  # control token -> id
    languages: dict[str, int]  # tag -> number in `.docs`, from 1 in the order of the tags; 0 means no language
    counts: DocumentCounts


def lay_out_shards(corpus: PreparedCorpus) -> ShardLayout:
    """Return the layout of all shards.

    Raises FolioError if two control tokens are equal, or if there are too many authors, cities,
    years or languages.
    """
    builder = _LayoutBuilder(corpus)
    num_documents = [receipt.num_documents for receipt in corpus.receipts]
    for partition, chunks in itertools.groupby(iter_chunks(num_documents), lambda chunk: chunk.partition):
        builder.add_partition(chunks, corpus.work_dir.read_values(partition))
    return builder.finish()


class _LayoutBuilder:
    """Builds the layout from the tables of all documents, partition by partition."""

    def __init__(self, corpus: PreparedCorpus) -> None:
        self._corpus, self._work_dir = corpus, corpus.work_dir
        vocab_size, special_tokens = corpus.tokenizer.vocab_size, corpus.tokenizer.special_tokens
        chat_tokens = number_chat_tokens(corpus.recipe.chat_template, special_tokens, vocab_size)
        self._control_ids = ControlTokenIds(vocab_size, special_tokens, chat_tokens | dict(corpus.control_tokens))
        self._cutter = _ShardCutter(corpus.recipe.shard_tokens, has_masks=corpus.recipe.has_masks)
        self._counts = DocumentCounts()
        self._tags: set[str] = set()

    def add_partition(self, chunks: Iterable[Chunk], values: PartitionValues) -> None:
        """Add the documents of the next partition, whose table refers to `values`."""
        num_values = {"author": len(values.author), "city": len(values.city), "year": NUM_YEARS}
        is_assigned = {name: np.zeros(num_values[name], bool) for name in CONTROL_FIELDS}
        is_tag_used = np.zeros(len(values.lang), bool)
        self._counts.begin_partition(values)
        first_token = 0
        for chunk in chunks:
            lengths, sides = self._work_dir.map_lengths(chunk), self._work_dir.map_sides(chunk)
            ends = first_token + np.cumsum(lengths, dtype=np.int64)
            starts = ends - lengths
            first_token = int(ends[-1])
            documents = self._work_dir.map_documents(chunk)
            kept = documents[sides != DROPPED]
            if self._corpus.recipe.authors:
                assign_control_ids(self._control_ids, kept, values, is_assigned)
            is_tag_used[kept["lang"][kept["lang"] >= 0]] = True
            for split in SPLITS:
                in_split = np.flatnonzero(sides == SIDE_OF_SPLIT[split])
                self._cutter.add(split, chunk, in_split, starts, lengths)
                self._counts.add(split, documents[in_split], lengths[in_split])
        self._tags |= {values.lang[i] for i in np.flatnonzero(is_tag_used).tolist()}

    def finish(self) -> ShardLayout:
        """Return the layout of the documents that were added."""
        languages = {tag: number for number, tag in enumerate(sorted(self._tags), start=1)}
        position_offsets = compute_position_offsets([receipt.num_positions for receipt in self._corpus.receipts])
        id_maps = IdMapper(self._work_dir, self._control_ids, languages, position_offsets)
        return ShardLayout(self._cutter.finish(), id_maps, self._control_ids.by_token, languages, self._counts)


def compute_position_offsets(num_positions: list[list[tuple[int, int]]]) -> list[PositionOffsets]:
    """Return for each partition what to add to the positions of its documents, by input file.

    A task numbers the documents of a span from 0, although earlier partitions may have read the
    beginning of the file. `num_positions` has, for each partition, a pair for each span: the input
    file's number, and how many positions the span uses. Returns, for each partition, the smallest
    number S of its files, and the offsets of files S, S + 1, …, (F,) uint64. A partition reads
    consecutive files, so all arrays together have about one entry per span.
    """
    totals: dict[int, int] = {}
    position_offsets = []
    for partition in num_positions:
        starts: dict[int, int] = {}
        for file_number, count in partition:
            starts.setdefault(file_number, totals.get(file_number, 0))
            totals[file_number] = totals.get(file_number, 0) + count
        first_file = min(starts, default=0)
        offsets = np.zeros(max(starts, default=0) + 1 - first_file, np.uint64)
        for file_number, start in starts.items():
            offsets[file_number - first_file] = start
        position_offsets.append((first_file, offsets))
    return position_offsets


class _ShardCutter:
    """Cuts the documents of each split into shards."""

    def __init__(self, shard_tokens: int, *, has_masks: bool) -> None:
        self._shard_tokens, self._has_masks = shard_tokens, has_masks
        self._finished: dict[str, list[PlannedShard]] = {split: [] for split in SPLITS}
        # The shard of each split that is not full yet:
        self._segments: dict[str, list[Segment]] = {split: [] for split in SPLITS}
        self._num_tokens = dict.fromkeys(SPLITS, 0)
        self._num_documents = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, chunk: Chunk, rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Append the documents `rows` of `chunk`, (S,) in ascending order, to `split`.

        `starts` and `lengths`, (D,) each, are of all documents of the chunk, in tokens. `starts`
        are offsets in the ids of the partition.
        """
        for first, last, is_full in cut_shards(lengths[rows], self._num_tokens[split], self._shard_tokens):
            first_row, last_row = int(rows[first]), int(rows[last - 1]) + 1
            segment = Segment(
                Chunk(chunk.partition, chunk.first + first_row, chunk.first + last_row),
                split,
                first_token=int(starts[first_row]),
                num_documents=last - first,
                num_tokens=int(lengths[rows[first:last]].sum(dtype=np.int64)),
                offset=WriteOffset(self._num_tokens[split], self._num_documents[split]),
            )
            self._segments[split].append(segment)
            self._num_tokens[split] += segment.num_tokens
            self._num_documents[split] += segment.num_documents
            if is_full:
                self._close_shard(split)

    def _close_shard(self, split: str) -> None:
        number = len(self._finished[split])
        plan = ShardPlan(split, number, self._num_tokens[split], self._num_documents[split], has_mask=self._has_masks)
        self._finished[split].append(PlannedShard(plan, self._segments[split]))
        self._segments[split], self._num_tokens[split], self._num_documents[split] = [], 0, 0

    def finish(self) -> list[PlannedShard]:
        """Return all shards, train first."""
        for split in SPLITS:
            if self._segments[split]:
                self._close_shard(split)
        return [shard for split in SPLITS for shard in self._finished[split]]
