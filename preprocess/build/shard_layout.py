"""Where every kept document goes, and what its control tokens are: one pass over the documents' tables, in reading order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preprocess.build.dedup_and_split import Decided, positions_before
from preprocess.build.stats import Counts
from preprocess.build.work_dir import WorkFolder
from preprocess.documents import TRAIN, VAL
from preprocess.errors import FolioError
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import CONTROL_FIELDS, SPLITS, format_control_token
from preprocess.shards.writer import ShardPlan, WriteOffset, cut_shards
from preprocess.tokenizers.interface import Tokenizer

SIDE_OF_SPLIT = {"train": TRAIN, "val": VAL}
NUM_YEARS = 10_000


@dataclass(frozen=True)
class Segment:
    """Consecutive kept documents of one split, of one partition, in one shard."""

    partition: int
    split: str
    shard: int
    first: int  # the documents' numbers among the kept ones of the split in the partition
    last: int
    place: WriteOffset
    num_tokens: int


@dataclass
class ShardLayout:
    """The plan of the assembly."""

    shards: list[ShardPlan] = field(default_factory=list)
    segments: list[list[Segment]] = field(default_factory=list)  # of each shard
    control_ids: dict[str, int] = field(default_factory=dict)  # spelling → id
    lookups: list[dict[str, np.ndarray]] = field(
        default_factory=list
    )  # of each partition: number in its list, or year → control id
    languages: dict[str, int] = field(
        default_factory=dict
    )  # tag → number in `.docs`, by sorted tag from 1; 0 is for none
    positions_before: list[np.ndarray] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


class _ControlIds:
    """Ids by first appearance; within a document author, city, year."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.by_spelling: dict[str, int] = {}
        self._by_value: dict[tuple[str, str | int], int] = {}
        self._next, self._taken = tokenizer.vocab_size, tokenizer.special_tokens

    def number(self, documents: np.ndarray, lists: dict[str, list[str]]) -> dict[str, np.ndarray]:
        """Number what is new in `documents`, kept ones of a partition; returns the partition's lookups."""
        found: list[tuple[int, int, int]] = []  # first row, field, number
        for f, name in enumerate(CONTROL_FIELDS):
            numbers, rows = np.unique(documents[name], return_index=True)
            found += [
                (row, f, number) for row, number in zip(rows.tolist(), numbers.tolist(), strict=True) if number >= 0
            ]
        lookups = {
            name: np.full(len(lists[name]) if name in lists else NUM_YEARS, -1, np.int64) for name in CONTROL_FIELDS
        }
        for _, f, number in sorted(found):
            name = CONTROL_FIELDS[f]
            lookups[name][number] = self._id(name, lists[name][number] if name in lists else number)
        return lookups

    def _id(self, name: str, value: str | int) -> int:
        key = (name, value)
        if key not in self._by_value:
            spelling = format_control_token(name, value)
            if spelling in self.by_spelling or spelling in self._taken:
                raise FolioError(
                    f"two control tokens would be spelled {spelling!r}; rename one of the two in the source"
                )
            self._by_value[key] = self.by_spelling[spelling] = self._next
            self._next += 1
        return self._by_value[key]


def lay_out_shards(
    recipe: Recipe, work: WorkFolder, decided: Decided, receipts: list[dict[str, Any]], tokenizer: Tokenizer
) -> ShardLayout:
    """The plan of all shards, by the tables of all partitions."""
    result = ShardLayout(positions_before=positions_before([receipt["num_positions"] for receipt in receipts]))
    control, shards, tags = _ControlIds(tokenizer), _Shards(recipe.shard_tokens), set()
    for number, receipt in enumerate(receipts):
        documents, lengths, sides = work.documents(number), work.lengths(number), decided.sides(number)
        is_kept = sides >= 0
        kept, kept_lengths = np.asarray(documents[is_kept]), lengths[is_kept]
        result.lookups.append(control.number(kept, receipt["lists"]) if recipe.authors else {})
        tags |= {receipt["lists"]["lang"][n] for n in np.unique(kept["lang"]).tolist() if n >= 0}
        for split in SPLITS:
            rows = sides[is_kept] == SIDE_OF_SPLIT[split]
            shards.add(split, number, kept_lengths[rows])
            result.counts.add(split, kept[rows], kept_lengths[rows], receipt["lists"])
    result.control_ids = control.by_spelling
    result.languages = {tag: n for n, tag in enumerate(sorted(tags), start=1)}
    result.shards, result.segments = shards.finish()
    return result


class _Shards:
    """Cuts the documents of each split into shards."""

    def __init__(self, shard_tokens: int) -> None:
        self._shard_tokens = shard_tokens
        self._done: dict[str, list[tuple[ShardPlan, list[Segment]]]] = {split: [] for split in SPLITS}
        self._open: dict[str, list[Segment]] = {split: [] for split in SPLITS}
        self._tokens = dict.fromkeys(SPLITS, 0)
        self._documents = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, partition: int, lengths: np.ndarray) -> None:
        """The kept documents of a partition, by their lengths in tokens."""
        for first, last, is_full in cut_shards(lengths, self._tokens[split], self._shard_tokens):
            num_tokens = int(lengths[first:last].sum())
            where = WriteOffset(self._tokens[split], self._documents[split])
            self._open[split].append(Segment(partition, split, len(self._done[split]), first, last, where, num_tokens))
            self._tokens[split] += num_tokens
            self._documents[split] += last - first
            if is_full:
                self._close(split)

    def _close(self, split: str) -> None:
        plan = ShardPlan(split, len(self._done[split]), self._tokens[split], self._documents[split])
        self._done[split].append((plan, self._open[split]))
        self._open[split], self._tokens[split], self._documents[split] = [], 0, 0

    def finish(self) -> tuple[list[ShardPlan], list[list[Segment]]]:
        """All shards, train first, with their segments."""
        for split in SPLITS:
            if self._open[split]:
                self._close(split)
        pairs = [pair for split in SPLITS for pair in self._done[split]]
        return [plan for plan, _ in pairs], [segments for _, segments in pairs]
