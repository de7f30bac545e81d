"""The layout of shards: control ids, positions, and cuts between shards."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.receipts import PrepareReceipt
from preprocess.build.shard_layout import ShardLayout, compute_position_offsets, lay_out_shards
from preprocess.build.work_dir import WorkDir
from preprocess.errors import FolioError
from preprocess.shards.writer import WriteOffset
from preprocess.tokenizers.characters import ByteTokenizer
from tests.preprocess.build.helpers import TOKENS_PER_DOCUMENT, make_recipe, write_documents, write_values


def make_receipt(num_documents: int) -> PrepareReceipt:
    return PrepareReceipt(
        files={},
        num_documents=num_documents,
        text_bytes=num_documents,
        num_positions=[(0, num_documents)],
        dropped={},
        cleaned={},
        encoding=None,
    )


def make_layout(work_dir: WorkDir, num_documents: list[int], **settings_: Any) -> ShardLayout:
    receipts = [make_receipt(count) for count in num_documents]
    recipe = make_recipe(val_fraction=0.5, **settings_)
    assignment = dedup_and_split(recipe, work_dir, num_documents)
    return lay_out_shards(PreparedCorpus(recipe, work_dir, receipts, assignment, ByteTokenizer(has_eot=True)))


def test_positions_continue_in_the_next_partition_of_a_file() -> None:
    offsets = compute_position_offsets([[(0, 5)], [(0, 3), (1, 4)], [(2, 9), (3, 1)], [(3, 2)]])
    assert [(first, array.tolist()) for first, array in offsets] == [(0, [0]), (0, [5, 0]), (2, [0, 0]), (3, [1])]


def test_control_ids_follow_the_first_appearance(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path)
    columns = {"author": [0, -1, 0, 1], "city": [-1, 0, 0, -1], "year": [1, 1, 2, -1]}
    num_documents = write_documents(work_dir, [1, 2, 3, 4], [1, 2, 3, 4], [2], **columns)
    # Each partition has its own indices of authors: in the second, 0 is A and 1 is B.
    write_values(work_dir, 0, author=["B"], city=["X"])
    write_values(work_dir, 1, author=["A", "B"], city=["X"])
    layout = make_layout(work_dir, num_documents)
    expected = {"<author_B>": 257, "<year_0001>": 258, "<city_X>": 259, "<author_A>": 260, "<year_0002>": 261}
    assert layout.control_ids == expected
    control_ids = layout.id_maps.make(1).control_ids
    assert control_ids["author"].tolist() == [260, 257] and control_ids["year"][2] == 261


@pytest.mark.parametrize("names", [["Anna Akimova", "Anna_Akimova"], ["a b", "a\u00a0b"]])
def test_names_with_the_same_control_token_are_rejected(tmp_path: Path, names: list[str]) -> None:
    work_dir = WorkDir(tmp_path)
    num_documents = write_documents(work_dir, [1, 2], [1, 2], [], author=[0, 1])
    write_values(work_dir, 0, author=names)
    with pytest.raises(FolioError, match="two control tokens would be written '<author_"):
        make_layout(work_dir, num_documents)


def test_shards_end_with_a_document_across_partitions(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path)
    num_documents = write_documents(work_dir, list(range(40)), list(range(40)), [7, 8, 30])
    layout = make_layout(work_dir, num_documents, shard_tokens=35)
    for split in ("train", "val"):
        plans = [shard.plan for shard in layout.shards if shard.plan.split == split]
        assert [plan.num_tokens for plan in plans] == [4 * TOKENS_PER_DOCUMENT] * 5
        assert [plan.number for plan in plans] == [0, 1, 2, 3, 4]
    for shard in layout.shards:
        assert sum(segment.num_tokens for segment in shard.segments) == shard.plan.num_tokens
        assert shard.segments[0].offset.num_tokens == 0


def test_memory_does_not_grow_with_the_values_of_all_partitions(tmp_path: Path) -> None:
    """Every partition may have all years and all authors; a map of 10,000 years alone has 80 kB."""
    work_dir, num_partitions = WorkDir(tmp_path), 80
    contents = list(range(num_partitions))
    columns = {"author": [0] * num_partitions, "year": [1999] * num_partitions}
    num_documents = write_documents(work_dir, contents, contents, contents[1:], **columns)
    authors = [f"author {i}" for i in range(1000)]
    for partition in range(num_partitions):
        write_values(work_dir, partition, author=authors)
    tracemalloc.start()
    try:
        layout = make_layout(work_dir, num_documents)
        layout.id_maps.make(0)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert layout.id_maps.make(70).control_ids["author"][:2].tolist() == [257, -1]
    assert peak_bytes < 3_000_000


def test_chunks_change_neither_layout_nor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_dir, contents = WorkDir(tmp_path), list(range(60))
    columns = {"author": [i * i % 5 - 1 for i in contents], "lang": [i % 3 - 1 for i in contents]}
    num_documents = write_documents(work_dir, contents, contents, [7, 8, 30], **columns)
    for partition in range(4):
        write_values(work_dir, partition, author=["A", "B", "C", "D"], lang=["en", "ru"])
    layouts = []
    for chunk_documents in (1, 4, 1000):
        monkeypatch.setattr("preprocess.build.work_dir.CHUNK_DOCUMENTS", chunk_documents)
        layouts.append(make_layout(work_dir, num_documents, shard_tokens=35))
    for layout in layouts:
        assert [shard.plan for shard in layout.shards] == [shard.plan for shard in layouts[0].shards]
        assert layout.control_ids == layouts[0].control_ids and layout.languages == {"en": 1, "ru": 2}
        assert layout.counts.languages.most_frequent(9) == layouts[0].counts.languages.most_frequent(9)
        for shard in layout.shards:
            num_tokens = num_documents = 0
            for segment in shard.segments:
                assert segment.offset == WriteOffset(num_tokens, num_documents)
                num_tokens, num_documents = num_tokens + segment.num_tokens, num_documents + segment.num_documents
                assert segment.num_tokens == segment.num_documents * TOKENS_PER_DOCUMENT
                assert segment.first_token == segment.chunk.first * TOKENS_PER_DOCUMENT
            assert (num_tokens, num_documents) == (shard.plan.num_tokens, shard.plan.num_documents)
