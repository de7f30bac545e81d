"""The phase that computes the shard and the offset of every document, before any is written.

The problem: many workers should write shards at once, but the bytes must not depend on their number
or speed.

The idea: the length of every document is already known (prepare.py), so the offset of every
document in every shard is a running sum over the lengths. This phase computes it in one pass over
the document tables, in reading order: partition by partition, 70 bytes per document, no text and no
ids. It numbers the control tokens in the same pass, because their ids depend on the order of first
appearance. Afterwards each shard consists of segments, runs of documents of one partition, whose
offsets are known. A worker writes a segment into the file at its offset, without waiting for the
segments before it, and the result is the same in any order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.receipts import PrepareReceipt
from preprocess.build.stats import DocumentCounts
from preprocess.build.work_dir import DROPPED
from preprocess.documents import TRAIN, VAL
from preprocess.shards.control_tokens import ControlTokenIds
from preprocess.shards.format import CONTROL_FIELDS, SPLITS
from preprocess.shards.writer import ShardPlan, WriteOffset, cut_shards

SIDE_OF_SPLIT = {"train": TRAIN, "val": VAL}
NUM_YEARS = 10_000


@dataclass(frozen=True)
class Segment:
    """Consecutive documents of one split, from one partition, in one shard."""

    partition: int
    split: str
    first: int  # index among the partition's documents of the split
    last: int  # exclusive
    offset: WriteOffset  # in the shard
    num_tokens: int


@dataclass(frozen=True)
class PlannedShard:
    """A shard, and the segments that fill it, in order."""

    plan: ShardPlan
    segments: list[Segment]


@dataclass(frozen=True)
class IdMaps:
    """Maps the numbers in a partition's document table to those of the build."""

    control_ids: dict[str, np.ndarray]  # author, city: index of the value -> control id; year: year -> control id
    languages: np.ndarray  # (L + 1,) u4: index of the tag -> number in `.docs`; the last entry, for -1, is 0
    position_offsets: np.ndarray  # (S,) u8: number of the input file -> what to add to the positions of its documents


@dataclass(frozen=True)
class ShardLayout:
    """The contents of all shards, and the vocabulary and counts that follow from them."""

    shards: list[PlannedShard]  # train first
    id_maps: list[IdMaps]  # of each partition
    control_ids: dict[str, int]  # control token -> id
    languages: dict[str, int]  # tag -> number in `.docs`, from 1 in the order of the tags; 0 means no language
    counts: DocumentCounts


def lay_out_shards(corpus: PreparedCorpus) -> ShardLayout:
    """Return the layout of all shards. Raises FolioError if two control tokens are equal."""
    control_ids = ControlTokenIds(corpus.tokenizer.vocab_size, corpus.tokenizer.special_tokens)
    cutter, counts, tags = _ShardCutter(corpus.recipe.shard_tokens), DocumentCounts(), set()
    control_id_maps: list[dict[str, np.ndarray]] = []
    for partition, receipt in enumerate(corpus.receipts):
        sides = corpus.assignment.sides(partition)
        is_kept = sides != DROPPED
        documents = np.asarray(corpus.work_dir.documents(partition)[is_kept])
        lengths, sides = corpus.work_dir.lengths(partition)[is_kept], sides[is_kept]
        control_id_maps.append(_map_control_ids(control_ids, documents, receipt) if corpus.recipe.authors else {})
        tags |= {receipt.values["lang"][i] for i in np.unique(documents["lang"]).tolist() if i >= 0}
        for split in SPLITS:
            in_split = sides == SIDE_OF_SPLIT[split]
            cutter.add(split, partition, lengths[in_split])
            counts.add(split, documents[in_split], lengths[in_split], receipt.values)
    languages = {tag: number for number, tag in enumerate(sorted(tags), start=1)}
    position_offsets = compute_position_offsets([receipt.num_positions for receipt in corpus.receipts])
    id_maps = [
        IdMaps(control_id_maps[partition], _map_languages(languages, receipt), position_offsets[partition])
        for partition, receipt in enumerate(corpus.receipts)
    ]
    return ShardLayout(cutter.finish(), id_maps, control_ids.by_token, languages, counts)


def _map_control_ids(
    control_ids: ControlTokenIds, documents: np.ndarray, receipt: PrepareReceipt
) -> dict[str, np.ndarray]:
    """Assign ids to the new values in `documents`, and return the maps of the partition.

    `documents`: the kept ones of the partition. New values are numbered in the order of the
    documents, and within a document in the order of CONTROL_FIELDS.
    """
    maps: dict[str, np.ndarray] = {}
    appearances: list[tuple[int, int, int]] = []  # row of the first appearance, field, value
    for field, name in enumerate(CONTROL_FIELDS):
        maps[name] = np.full(NUM_YEARS if name == "year" else len(receipt.values[name]), -1, np.int64)
        values, rows = np.unique(documents[name], return_index=True)
        appearances += zip(rows.tolist(), itertools.repeat(field), values.tolist(), strict=False)
    for _, field, value in sorted(appearances):
        if value >= 0:
            name = CONTROL_FIELDS[field]
            maps[name][value] = control_ids.assign(name, value if name == "year" else receipt.values[name][value])
    return maps


def _map_languages(languages: dict[str, int], receipt: PrepareReceipt) -> np.ndarray:
    return np.array([*(languages.get(tag, 0) for tag in receipt.values["lang"]), 0], np.uint32)


def compute_position_offsets(num_positions: list[list[tuple[int, int]]]) -> list[np.ndarray]:
    """Return for each partition what to add to the positions of its documents, by input file.

    A task numbers the documents of a file from 0, although earlier partitions may have read the
    beginning of the file. `num_positions` lists, for each partition, pairs of an input file's
    number and how many positions a span of it uses. Returns (S,) u8 arrays.
    """
    totals: dict[int, int] = {}
    position_offsets = []
    for partition in num_positions:
        starts: dict[int, int] = {}
        for file_number, count in partition:
            starts.setdefault(file_number, totals.get(file_number, 0))
            totals[file_number] = totals.get(file_number, 0) + count
        offsets = np.zeros(max(starts, default=0) + 1, np.uint64)
        for file_number, start in starts.items():
            offsets[file_number] = start
        position_offsets.append(offsets)
    return position_offsets


class _ShardCutter:
    """Cuts the documents of each split into shards."""

    def __init__(self, shard_tokens: int) -> None:
        self._shard_tokens = shard_tokens
        self._finished: dict[str, list[PlannedShard]] = {split: [] for split in SPLITS}
        # The shard of each split that is not full yet:
        self._segments: dict[str, list[Segment]] = {split: [] for split in SPLITS}
        self._num_tokens = dict.fromkeys(SPLITS, 0)
        self._num_documents = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, partition: int, lengths: np.ndarray) -> None:
        """Append the documents of a partition that are in `split`. `lengths`: (D,) their tokens."""
        for first, last, is_full in cut_shards(lengths, self._num_tokens[split], self._shard_tokens):
            offset = WriteOffset(self._num_tokens[split], self._num_documents[split])
            num_tokens = int(lengths[first:last].sum())
            self._segments[split].append(Segment(partition, split, first, last, offset, num_tokens))
            self._num_tokens[split] += num_tokens
            self._num_documents[split] += last - first
            if is_full:
                self._close_shard(split)

    def _close_shard(self, split: str) -> None:
        number = len(self._finished[split])
        plan = ShardPlan(split, number, self._num_tokens[split], self._num_documents[split])
        self._finished[split].append(PlannedShard(plan, self._segments[split]))
        self._segments[split], self._num_tokens[split], self._num_documents[split] = [], 0, 0

    def finish(self) -> list[PlannedShard]:
        """Return all shards, train first."""
        for split in SPLITS:
            if self._segments[split]:
                self._close_shard(split)
        return [shard for split in SPLITS for shard in self._finished[split]]
