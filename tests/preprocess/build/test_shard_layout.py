"""The layout of shards: control ids, positions, and cuts between shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.build.dedup_and_split import dedup_and_split
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.receipts import PrepareReceipt
from preprocess.build.shard_layout import ShardLayout, compute_position_offsets, lay_out_shards
from preprocess.build.work_dir import WorkDir
from preprocess.errors import FolioError
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
