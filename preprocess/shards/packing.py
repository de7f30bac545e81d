"""Whole documents packed into rows of `block_size` positions, each document once per epoch.

Windows (windows.py) cut documents in two, so the end of a chat is often learnt without its
beginning. If each document had a row of its own, most positions would be padding. So several
documents share a row. Usually, documents are shuffled, and rows are filled from a buffer of them.
Then the content of a row depends on all rows before it: to resume, or to divide the rows among
processes, all of them must be packed again, and each epoch has another number of rows.

Here, only the lengths are packed, once: from the number of documents of each length,
`pack_lengths` computes patterns such as "one document of 40 tokens and two of 12", and how many
rows have each pattern (best-fit decreasing on the histogram of lengths; Krell et al. 2021,
"Efficient sequence packing without cross-contamination"). In each epoch, a keyed permutation
(permutation.py) orders the rows, and another one for each length decides which of the documents of
that length is where. So a row is a pure function of (seed, sample number), as a window is, all
epochs have the same number of rows, and the padding is that of packing the whole split at once.

The first token of a document is not a target, because no token is before it. A document of L tokens
has L − 1 pairs of an input and the next token as its target, and these are packed. A document of
more pairs than a row has positions is cut into pieces that fill a row, and the rest. No target of
it is lost, but the first tokens of a piece are predicted without those of the piece before.

The cost: 8 bytes of memory for each document, its first token. These are ordered by length when the
split is opened, which takes less than half a second per million documents. Locating and reading a row takes
O(block_size). Uses NumPy only.

Shapes: B rows, T = block_size positions, I items (documents, or pieces of long ones), S shards.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.loss_mask import read_bits
from preprocess.shards.permutation import keyed_hash, mix64, permute, permute_each

ENDS_CHUNK = 1 << 18  # documents that are indexed at a time
Pattern = tuple[tuple[int, int], ...]  # the items of a row: (length, how many), …


@dataclass(frozen=True)
class Items:
    """The items of B rows, each (I,) int64."""

    row: np.ndarray  # index of the row, 0 to B - 1
    number: np.ndarray  # of the item in its row, from 0
    column: np.ndarray  # of its first position
    shard: np.ndarray
    start: np.ndarray  # its first token in the shard
    length: np.ndarray  # number of positions


class PackedRows:
    """The rows of every epoch of a split."""

    windows_per_epoch: int  # rows
    num_items: int  # documents with at least two tokens; a long one counts once for each of its pieces
    num_targets: int  # positions that are not padding, in an epoch

    def __init__(self, ends: Sequence[np.ndarray], block_size: int, *, seed: int, split: str) -> None:
        """`ends`: the exclusive document ends of each shard, uint64, ascending.

        Raises MisuseError for a seed outside 0 to 2**64 - 1, and if no document has two tokens.
        """
        self._starts, self._counts = _index_by_length(ends, block_size)  # (I,), (T + 1,)
        self.num_items = len(self._starts)
        if not self.num_items:
            raise MisuseError(f"no document of the {split} split has two tokens; build from more text")
        self.num_targets = int(self._counts @ np.arange(len(self._counts)))
        self._first_of_length = np.cumsum(self._counts) - self._counts  # (T + 1,) index in _starts
        lengths = np.array([int(shard[-1]) if len(shard) else 0 for shard in ends], np.int64)
        self._shard_edges = np.cumsum(lengths)  # (S,)
        self._first_of_shard = self._shard_edges - lengths
        self._make_tables(pack_lengths(self._counts, block_size))
        self._block_size = block_size
        self._key = keyed_hash(seed, np.frombuffer(b"packrows", dtype="<u8"))  # (1,)

    def _make_tables(self, groups: list[tuple[int, Pattern]]) -> None:
        """Store, for each pattern, its rows and entries. An entry is (length, how many) of a pattern.

        The items of a length are numbered in the order of the entries that have it, so that each is
        in one row. Those of an entry, in all rows of its pattern, begin with number `first`.
        """
        num_rows = np.array([count for count, _ in groups], np.int64)
        self._row_edges = np.cumsum(num_rows)
        self._first_row = self._row_edges - num_rows
        self.windows_per_epoch = int(self._row_edges[-1])
        self._num_entries = np.array([len(pattern) for _, pattern in groups], np.int64)
        self._first_entry = np.cumsum(self._num_entries) - self._num_entries
        num_numbered: dict[int, int] = {}
        entries = []
        for count, pattern in groups:
            for length, copies in pattern:
                first = num_numbered.get(length, 0)
                entries.append((length, copies, first))
                num_numbered[length] = first + count * copies
        self._entry_length, self._entry_copies, self._entry_first = np.array(entries, np.int64).T

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the row (B,) and the epoch (B,), both int64, of each sample. `samples`: (B,), numbers."""
        epoch, index = np.divmod(samples.astype(np.uint64), np.uint64(self.windows_per_epoch))
        return permute(index, self.windows_per_epoch, mix64(epoch ^ self._key)).astype(np.int64), epoch.astype(np.int64)

    def list_items(self, row: np.ndarray, epoch: np.ndarray) -> Items:
        """Return the items of each `row`, (B,), in its `epoch`, (B,): row by row, from left to right."""
        pattern = np.searchsorted(self._row_edges, row, side="right")  # (B,)
        of_row, number = _count_up(self._num_entries[pattern])
        entry = self._first_entry[pattern][of_row] + number  # the entries of each row
        of_entry, copy = _count_up(self._entry_copies[entry])
        row_index, entry = of_row[of_entry], entry[of_entry]  # (I,)
        repetition = (row - self._first_row[pattern])[row_index]  # how many rows before have the same pattern
        slot = self._entry_first[entry] + repetition * self._entry_copies[entry] + copy
        length = self._entry_length[entry]
        key = mix64(mix64(epoch.astype(np.uint64) ^ ~self._key)[row_index] ^ length.astype(np.uint64))
        rank = permute_each(slot.astype(np.uint64), self._counts[length].astype(np.uint64), key).astype(np.int64)
        start = self._starts[self._first_of_length[length] + rank]
        shard = np.searchsorted(self._shard_edges, start, side="right")
        num_items = np.bincount(row_index, minlength=len(row))  # (B,)
        begin = np.cumsum(length) - length
        first_item = np.cumsum(num_items) - num_items
        column = begin - begin[first_item][row_index]
        return Items(
            row_index,
            np.arange(len(row_index)) - first_item[row_index],
            column,
            shard,
            start - self._first_of_shard[shard],
            length,
        )

    def read_tokens(
        self, tokens: Sequence[np.ndarray], row: np.ndarray, epoch: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets, (B, 2 T) of the dtype of `tokens`, and documents, (B, T) int32.

        The targets are to the right of the inputs. Padding is at the end of a row: id 0 in both, and
        a document of its own. `tokens`: those of each shard, one-dimensional arrays.
        """
        items, size = self.list_items(row, epoch), self._block_size
        shard, token = _list_tokens(items)
        is_filled = self._is_filled(items, len(row))
        pairs = np.zeros((len(row), 2, size), tokens[0].dtype)
        pairs[:, 0][is_filled] = _gather(tokens, shard, token)
        pairs[:, 1][is_filled] = _gather(tokens, shard, token + 1)
        documents = np.repeat(np.bincount(items.row, minlength=len(row)).astype(np.int32)[:, None], size, axis=1)
        documents[is_filled] = np.repeat(items.number, items.length)
        return pairs.reshape(len(row), 2 * size), documents

    def read_mask(self, masks: Sequence[np.ndarray | None], row: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """Return which targets count, (B, T) bool. Padding does not.

        `masks`: the packed loss mask of each shard (loss_mask.py), or None if all its tokens count.
        """
        items = self.list_items(row, epoch)
        is_counted = self._is_filled(items, len(row))
        shard, token = _list_tokens(items)
        is_counted[is_counted] = read_bits(masks, shard, token + 1)
        return is_counted

    def _is_filled(self, items: Items, num_rows: int) -> np.ndarray:
        """Return which positions of the rows of `items` are not padding, (B, T) bool."""
        num_filled = np.bincount(items.row, weights=items.length, minlength=num_rows)
        is_filled: np.ndarray = np.arange(self._block_size) < num_filled[:, None]
        return is_filled


def pack_lengths(counts: np.ndarray, block_size: int) -> list[tuple[int, Pattern]]:
    """Return patterns that hold all items, each with its number of rows.

    `counts[n]` is the number of items of length n, from 1 to `block_size`. The longest items are
    packed first, each into the row with the least space that is enough (best-fit decreasing). Rows
    with the same content are handled together, so the time depends on the number of lengths and not
    on that of items.
    """
    packed: list[tuple[int, Pattern]] = []
    rows_by_space: dict[int, list[tuple[int, Pattern]]] = {}
    spaces: list[int] = []  # the keys of rows_by_space, ascending
    lengths = np.flatnonzero(counts).tolist()

    def add(space: int, num_rows: int, pattern: Pattern) -> None:
        if space < lengths[0]:  # nothing fits any more
            packed.append((num_rows, pattern))
            return
        if space not in rows_by_space:
            rows_by_space[space] = []
            insort(spaces, space)
        rows_by_space[space].append((num_rows, pattern))

    for length in reversed(lengths):
        remaining = int(counts[length])
        while remaining:
            place = bisect_left(spaces, length)
            pattern: Pattern = ()
            if place == len(spaces):
                space, num_rows = block_size, -(-remaining // (block_size // length))
            else:
                space = spaces[place]
                num_rows, pattern = rows_by_space[space].pop()
                if not rows_by_space[space]:
                    del rows_by_space[space], spaces[place]
            copies = min(space // length, remaining)
            num_filled = min(remaining // copies, num_rows)
            add(space - copies * length, num_filled, (*pattern, (length, copies)))
            remaining -= num_filled * copies
            if num_filled < num_rows and pattern:
                add(space, num_rows - num_filled, pattern)
    return packed + [group for space in spaces for group in rows_by_space[space]]


def _index_by_length(ends: Sequence[np.ndarray], block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first token of each item, (I,) int64, and the number of items of each length, (T + 1,).

    Tokens are numbered over all shards. The items are ordered by length, and those of equal length
    by their tokens. This is a counting sort of the documents, in chunks.
    """
    counts = np.zeros(block_size + 1, np.int64)
    for _, length in _cut_documents(ends, block_size):
        found = np.bincount(length)
        counts[: len(found)] += found
    starts, place = np.empty(counts.sum(), np.int64), np.cumsum(counts) - counts
    for start, length in _cut_documents(ends, block_size):
        order = np.argsort(length, kind="stable")
        found = np.bincount(length)
        first = np.cumsum(found) - found
        ordered = length[order]
        starts[place[ordered] + np.arange(len(ordered)) - first[ordered]] = start[order]
        place[: len(found)] += found
    return starts, counts


def _cut_documents(ends: Sequence[np.ndarray], block_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the first token and the number of pairs of each item, (I,) int64 each, in chunks of documents."""
    first_of_shard = 0
    for shard in ends:
        begin = 0
        for chunk in range(0, len(shard), ENDS_CHUNK):
            end = shard[chunk : chunk + ENDS_CHUNK].astype(np.int64)
            start = np.concatenate([[begin], end[:-1]])
            num_pairs = np.maximum(end - start - 1, 0)
            document, piece = _count_up(-(-num_pairs // block_size))
            yield (
                first_of_shard + start[document] + piece * block_size,
                np.minimum(num_pairs[document] - piece * block_size, block_size),
            )
            begin = int(end[-1])
        first_of_shard += begin


def _list_tokens(items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Return the shard and the token in it of each position that is not padding, (P,) int64 each, row by row."""
    item, index = _count_up(items.length)
    return items.shard[item], items.start[item] + index


def _gather(arrays: Sequence[np.ndarray], shard: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Return element `token` of array number `shard`, (P,) each: (P,) of the dtype of `arrays`."""
    if len(arrays) == 1:
        return arrays[0][token]
    out = np.empty(len(token), arrays[0].dtype)
    for s in np.flatnonzero(np.bincount(shard)).tolist():
        chosen = np.flatnonzero(shard == s)
        out[chosen] = arrays[s][token[chosen]]
    return out


def _count_up(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 0 `counts[0]` times, 1 `counts[1]` times, …, and how often each value came before: int64 each."""
    group = np.repeat(np.arange(len(counts)), counts)
    return group, np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
