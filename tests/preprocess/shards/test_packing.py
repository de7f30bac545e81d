"""Packed rows: which documents are in which row, each exactly once per epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.shards import packing
from preprocess.shards.packing import PackedRows, pack_lengths

SHARDS = st.lists(st.lists(st.integers(0, 40), max_size=30), min_size=1, max_size=3).filter(
    lambda shards: any(length > 1 for shard in shards for length in shard)
)


def make_ends(shards: list[list[int]]) -> list[np.ndarray]:
    return [np.cumsum(lengths, dtype=np.uint64) for lengths in shards]


def pack_one_by_one(lengths: list[int], block_size: int) -> int:
    """Return the number of rows if each item, the longest first, is put into the fullest row that it fits."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces[spaces.index(min(fitting))] -= length
        else:
            spaces.append(block_size - length)
    return len(spaces)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40).flatmap(lambda size: st.tuples(st.lists(st.integers(1, size), max_size=60), st.just(size))))
def test_pack_lengths_is_best_fit_decreasing(case: tuple[list[int], int]) -> None:
    lengths, block_size = case
    packed = pack_lengths(np.bincount(lengths, minlength=block_size + 1), block_size)
    items = [length for rows, pattern in packed for length, copies in pattern for _ in range(rows * copies)]
    assert sorted(items) == sorted(lengths)
    assert all(sum(length * copies for length, copies in pattern) <= block_size for _, pattern in packed)
    assert sum(rows for rows, _ in packed) == pack_one_by_one(lengths, block_size)


def test_padding_of_a_million_chats_is_below_a_thousandth() -> None:
    counts = np.bincount(np.random.default_rng(0).geometric(1 / 150, 1_000_000).clip(2, 1024), minlength=1025)
    packed = pack_lengths(counts, 1024)
    num_rows = sum(rows for rows, _ in packed)
    assert 1 - int(counts @ np.arange(1025)) / (1024 * num_rows) < 0.001


def list_pairs(rows: PackedRows, tokens: list[np.ndarray], epoch: int) -> list[tuple[int, int]]:
    """Return the inputs and targets of an epoch, and check what else a row has."""
    number = np.arange(rows.windows_per_epoch) + epoch * rows.windows_per_epoch
    row, epochs = rows.locate(number)
    assert sorted(row) == list(range(rows.windows_per_epoch)) and (epochs == epoch).all()
    pairs, documents = rows.read_tokens(tokens, row, epochs)
    size = documents.shape[1]
    is_counted = rows.read_mask([None] * len(tokens), row, epochs)
    assert (np.diff(is_counted.astype(int), axis=1) <= 0).all(), "padding is at the end"
    assert (pairs[:, :size][~is_counted] == 0).all() and (pairs[:, size:][~is_counted] == 0).all()
    inputs, targets = pairs[:, :size].astype(int), pairs[:, size:].astype(int)
    # In a document, each input is the target of the one before; the number changes between documents.
    is_next = inputs[:, 1:] == targets[:, :-1]
    is_same = (documents[:, 1:] == documents[:, :-1]) & is_counted[:, 1:]
    assert (is_next[is_same]).all() and (np.diff(documents, axis=1) >= 0).all()
    assert all(not set(d[c]) & set(d[~c]) for d, c in zip(documents, is_counted, strict=True)), "padding is alone"
    return list(zip(inputs[is_counted].tolist(), targets[is_counted].tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(SHARDS, st.integers(1, 24), st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_every_token_but_the_first_of_a_document_is_a_target_once_per_epoch(
    shards: list[list[int]], block_size: int, seed: int, epoch: int
) -> None:
    ends = make_ends(shards)
    rows = PackedRows(ends, block_size, seed=seed, split="train")
    # The id of each token is its position.
    sizes = np.array([sum(shard) for shard in shards])
    tokens = [np.arange(size) + first + 1 for size, first in zip(sizes, np.cumsum(sizes) - sizes, strict=True)]
    expected = [
        (int(token), int(token) + 1)
        for shard, shard_ends in zip(tokens, ends, strict=True)
        for document in np.split(shard, shard_ends[:-1].astype(int))
        for token in document[:-1]
    ]
    for number in (epoch, epoch + 1):
        assert sorted(list_pairs(rows, tokens, number)) == expected
    assert rows.num_targets == len(expected)


def test_documents_that_fit_are_whole_and_longer_ones_are_cut_into_rows() -> None:
    rows = PackedRows(make_ends([[5, 26, 1, 9], [3, 11]]), 10, seed=0, split="train")
    items = rows.list_items(*rows.locate(np.arange(rows.windows_per_epoch)))
    found = sorted(zip(items.shard.tolist(), items.start.tolist(), items.length.tolist(), strict=True))
    assert found == [(0, 0, 4), (0, 5, 10), (0, 15, 10), (0, 25, 5), (0, 32, 8), (1, 0, 2), (1, 3, 10)]
    assert rows.num_items == 7 and rows.windows_per_epoch == 5


def test_rows_and_their_documents_change_with_the_epoch_and_the_seed() -> None:
    ends = make_ends([[8, 9, 10, 11] * 50])

    def list_rows(seed: int, epoch: int) -> list[tuple[int, ...]]:
        rows = PackedRows(ends, 20, seed=seed, split="train")
        items = rows.list_items(*rows.locate(np.arange(rows.windows_per_epoch) + epoch * rows.windows_per_epoch))
        return [tuple(items.start[items.row == row].tolist()) for row in range(rows.windows_per_epoch)]

    orders = [list_rows(seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert list_rows(0, 1) == orders[1]
    for one, other in ((orders[0], orders[1]), (orders[0], orders[2])):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < len(one) / 10
        assert len({*one} & {*other}) < len(one) / 4, "other documents share a row"


def test_rows_are_located_one_by_one_as_all_at_once() -> None:
    rows = PackedRows(make_ends([[5, 3, 30, 7, 7, 2] * 20]), 16, seed=3, split="train")
    tokens = [np.arange(6 * 20 * 54, dtype=np.uint32)]
    samples = np.arange(3 * rows.windows_per_epoch)
    pairs, documents = rows.read_tokens(tokens, *rows.locate(samples))
    for sample in samples:
        one_pairs, one_documents = rows.read_tokens(tokens, *rows.locate(np.array([sample])))
        assert (one_pairs[0] == pairs[sample]).all() and (one_documents[0] == documents[sample]).all()


def test_documents_are_indexed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = make_ends([[5, 3, 30, 7, 0, 1, 7, 2] * 9, [], [4] * 7])
    whole = packing._index_by_length(ends, 8)
    monkeypatch.setattr(packing, "ENDS_CHUNK", 5)
    for ours, expected in zip(packing._index_by_length(ends, 8), whole, strict=True):
        assert (ours == expected).all()


def test_split_without_two_tokens_in_a_document_is_an_error() -> None:
    with pytest.raises(MisuseError, match="no document of the val split has two tokens; build from more text"):
        PackedRows(make_ends([[1, 0, 1]]), 8, seed=0, split="val")


def test_order_of_rows_never_changes() -> None:
    """A run that continues with another version of Folio must read the same rows."""
    rows = PackedRows(make_ends([[5, 3, 30, 7, 12, 2] * 40]), 16, seed=7, split="train")
    items = rows.list_items(*rows.locate(np.array([0, 1, 2, 1000])))
    assert items.start.tolist() == [378, 949, 1119, 2266, 1834, 824, 1343, 1933, 413]
    assert items.length.tolist() == [13, 2, 1, 13, 2, 1, 11, 11, 4]
