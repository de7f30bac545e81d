"""What can only be decided when all documents are known: which stay, on which side, and what ids control tokens have.

Each question is asked of the documents' tables alone, partition by partition, in memory that does not grow with their number: hashes go
through buckets on disk, and of a split by rank only the boundary is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from preprocess.build.buckets import Buckets
from preprocess.build.work_dir import DROPPED, WorkFolder
from preprocess.documents import HELD_OUT, TRAIN, VAL
from preprocess.errors import FolioError
from preprocess.recipes.schema import Recipe
from preprocess.stages.dedup import two_halves
from preprocess.stages.split import GROUP, is_below, keyed_groups

ROW = np.dtype([("h", "<u8"), ("low", "<u8"), ("index", "<u8")])
Boundary = tuple[int, int, int]  # the last group, in order of (keyed hash, high, low), that is on the near side


@dataclass
class Decided:
    """The side of every document, in the work folder's files; and how many were dropped for what."""

    work: WorkFolder
    num_documents: list[int]  # of each partition
    dropped: dict[str, int] = field(default_factory=dict)
    note: str | None = None  # what somebody should hear of

    def __post_init__(self) -> None:
        for number, count in enumerate(self.num_documents):
            self.work.file(number, "sides").write_bytes(bytes([TRAIN]) * count)

    def sides(self, number: int) -> np.ndarray:
        """TRAIN, VAL or DROPPED for each document of a partition: (D,) int8, which may be changed."""
        return self.work.sides(number)

    def partitions(self) -> Iterator[tuple[int, np.ndarray]]:
        """Every partition's number and sides."""
        return ((number, self.sides(number)) for number in range(len(self.num_documents)))

    @property
    def num_kept(self) -> int:
        return sum(int(np.count_nonzero(sides != DROPPED)) for _, sides in self.partitions())


def decide_sides(recipe: Recipe, work: WorkFolder, num_documents: list[int]) -> Decided:
    """Deduplicate, cap and split the documents of all partitions. Raises FolioError where a side would be empty."""
    decided = Decided(work, num_documents)
    if recipe.split == "given":
        _hold_out(decided, work)
    if recipe.dedup:
        _drop_duplicates(decided, work, sum(num_documents))
    if recipe.max_documents is not None:
        _drop_over(decided, work, recipe.max_documents, seed=recipe.seed)
    if recipe.split in ("contiguous", "given"):
        for number, sides in decided.partitions():
            known = work.documents(number)["side"]
            sides[(sides != DROPPED) & (known == VAL)] = VAL
    elif recipe.split == "threshold":
        _split_by(decided, work, recipe.seed, lambda keys, high, low: is_below(keys, recipe.val_fraction))
    else:
        _split_exactly(decided, work, recipe)
    _check_both(decided, recipe)
    return decided


def _hold_out(decided: Decided, work: WorkFolder) -> None:
    """What the corpus gives for testing stays out, unless it is all there is to train on."""
    has_train = any(bool((work.documents(n)["side"] == TRAIN).any()) for n in range(len(decided.num_documents)))
    count = 0
    for number, sides in decided.partitions():
        is_out = work.documents(number)["side"] == HELD_OUT
        if has_train:
            sides[is_out] = DROPPED
            count += int(is_out.sum())
    decided.dropped["held_out"] = count
    if not has_train:
        decided.note = "nothing is given for training: what is given for testing trains"


def _drop_duplicates(decided: Decided, work: WorkFolder, num_documents: int) -> None:
    """Of documents with the same content hash the first stays."""
    buckets = Buckets(work.path, "hashes", ROW, num_documents)
    first, starts = 0, []
    for number, sides in decided.partitions():
        starts.append(first)
        kept = np.flatnonzero(sides != DROPPED)
        rows = np.empty(len(kept), ROW)
        rows["h"], rows["low"] = two_halves(work.documents(number)["hash"][kept])
        rows["index"] = kept + first
        buckets.append(rows)
        first += len(sides)
    count = 0
    for rows in buckets:
        indices = np.sort(repeated(rows))
        edges = np.searchsorted(indices, [*starts, first])
        for number in np.flatnonzero(np.diff(edges)).tolist():
            decided.sides(number)[indices[edges[number] : edges[number + 1]] - np.uint64(starts[number])] = DROPPED
        count += len(indices)
    buckets.delete()
    decided.dropped["duplicates"] = count


def repeated(rows: np.ndarray) -> np.ndarray:
    """Of (N,) ROW in order of index, the indices of rows whose 128 bits an earlier row has."""
    order = np.argsort(rows["h"])
    ordered = rows["h"][order]
    same = ordered[1:] == ordered[:-1]
    if not same.any():
        return np.empty(0, np.uint64)
    # Only rows that share 64 bits are sorted by all they have.
    suspects = rows[order[np.append(same, False) | np.insert(same, 0, False)]]
    suspects = suspects[np.lexsort((suspects["index"], suspects["low"], suspects["h"]))]
    equal = (suspects["h"][1:] == suspects["h"][:-1]) & (suspects["low"][1:] == suspects["low"][:-1])
    indices: np.ndarray = suspects["index"][1:][equal]
    return indices


def _keyed_groups(decided: Decided, work: WorkFolder, seed: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Partition by partition, the kept rows and their groups as GROUP: the keyed hash, then the group's own 128 bits."""
    for number, sides in decided.partitions():
        kept = np.flatnonzero(sides != DROPPED)
        yield number, kept, keyed_groups(work.documents(number)["group"][kept], seed)


def _split_exactly(decided: Decided, work: WorkFolder, recipe: Recipe) -> None:
    """round(N × val_fraction) of N groups validate: those with the smallest keyed hash."""
    total, boundary = _boundary(
        decided, work, recipe.seed, lambda num_groups, _: round(num_groups * recipe.val_fraction)
    )
    num_val = round(total * recipe.val_fraction)
    if num_val in (0, total):
        if total == 1 and decided.num_kept > 1:
            raise FolioError(
                f"all {decided.num_kept:,} documents are one group, which cannot be split; choose another group_by or group_column"
            )
        raise FolioError(
            f"{total:,} {'document' if total == 1 else 'documents'} cannot be split with val_fraction {recipe.val_fraction}: one side "
            "would be empty; add documents, cut them smaller (--document paragraph, or --split contiguous for one long text), or choose "
            "another --val-fraction"
        )
    _split_by(decided, work, recipe.seed, lambda keys, high, low: _is_within(keys, high, low, boundary))


def _drop_over(decided: Decided, work: WorkFolder, max_documents: int, *, seed: int) -> None:
    """Keep whole groups, those with the smallest keyed hash, as long as they hold no more than `max_documents` together."""
    before = decided.num_kept
    if before <= max_documents:
        decided.dropped["over_max_documents"] = 0
        return
    _, boundary = _boundary(
        decided,
        work,
        ~seed & (2**64 - 1),
        lambda _, counts: int(np.searchsorted(np.cumsum(counts), max_documents, "right")),
    )
    if boundary is None:
        raise FolioError(
            f"max_documents is {max_documents:,}, and the first group that was drawn has more documents; raise it"
        )
    for number, kept, groups in _keyed_groups(decided, work, ~seed & (2**64 - 1)):
        decided.sides(number)[kept[~_is_within(groups["h"], groups["high"], groups["low"], boundary)]] = DROPPED
    decided.dropped["over_max_documents"] = before - decided.num_kept


def _boundary(
    decided: Decided, work: WorkFolder, seed: int, rank: Callable[[int, np.ndarray], int]
) -> tuple[int, Boundary | None]:
    """How many groups there are, and the one of the wanted rank. `rank`: given their number and each one's documents, how many to take."""
    buckets = Buckets(work.path, "groups", GROUP, decided.num_kept)
    for _, _, groups in _keyed_groups(decided, work, seed):
        buckets.append(groups)
    sizes, last = [], None
    for rows in buckets:
        last = rows, *_distinct(rows)
        sizes.append(last[2])
    total = sum(map(len, sizes))
    wanted = rank(total, np.concatenate(sizes))
    boundary = None
    for rows, counts in zip([last[0]] if last and len(sizes) == 1 else buckets, sizes, strict=True):
        if 0 < wanted <= len(counts):
            order = last[1] if last and rows is last[0] else _distinct(rows)[0]
            group = rows[order[wanted - 1]]
            boundary = int(group["h"]), int(group["high"]), int(group["low"])
        wanted -= len(counts)
    buckets.delete()
    return total, boundary


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (N,) GROUP, the places of the distinct groups in order, and how many rows each has."""
    order = np.argsort(rows["h"])
    keys = rows["h"][order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = keys[1:] != keys[:-1]
    if is_new.all():
        return order, np.ones(len(rows), np.int64)
    order = np.lexsort(
        (rows["low"], rows["high"], rows["h"])
    )  # ties of the 64-bit key are settled by the 128 bits themselves
    for name in ("high", "low"):
        ordered = rows[name][order]
        is_new[1:] |= ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_new)
    return order[starts], np.diff(np.append(starts, len(rows)))


def _is_within(keys: np.ndarray, high: np.ndarray, low: np.ndarray, boundary: Boundary | None) -> np.ndarray:
    if boundary is None:
        return np.zeros(len(keys), bool)
    key, boundary_high, boundary_low = map(np.uint64, boundary)
    tie = (high < boundary_high) | ((high == boundary_high) & (low <= boundary_low))
    return (keys < key) | ((keys == key) & tie)


def _split_by(
    decided: Decided, work: WorkFolder, seed: int, is_val: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> None:
    for number, kept, groups in _keyed_groups(decided, work, seed):
        decided.sides(number)[kept[is_val(groups["h"], groups["high"], groups["low"])]] = VAL


def _check_both(decided: Decided, recipe: Recipe) -> None:
    for side, name in ((TRAIN, "training"), (VAL, "validation")):
        if not any(bool((sides == side).any()) for _, sides in decided.partitions()):
            if recipe.split == "contiguous":
                raise FolioError(
                    f"{recipe.corpus} is too short to cut: its {name} side would be empty; give it more text or another --val-fraction"
                )
            raise FolioError(
                f"the {name} side of {recipe.corpus} would be empty with the {recipe.split} split; add documents, or choose another split"
            )


def positions_before(num_positions: list[list[list[int]]]) -> list[np.ndarray]:
    """What to add to the positions of a partition's documents, by source: `num_positions` lists [source, documents] of its pieces."""
    counted: dict[int, int] = {}
    before = []
    for pieces in num_positions:
        first: dict[int, int] = {}
        for source, count in pieces:
            first.setdefault(source, counted.get(source, 0))
            counted[source] = counted.get(source, 0) + count
        table = np.zeros(max(first, default=0) + 1, np.uint64)
        for source, start in first.items():
            table[source] = start
        before.append(table)
    return before
