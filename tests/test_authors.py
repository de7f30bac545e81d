"""Control tokens: spelling, order, and no two alike."""

from __future__ import annotations

import pyarrow as pa
import pytest

from preprocess.documents import make_batch
from preprocess.errors import FolioError
from preprocess.shards.format import spell_control_token
from preprocess.stages.authors import assign_ids


def table(**columns: list) -> pa.Table:
    n = len(next(iter(columns.values())))
    return pa.Table.from_batches([make_batch({"text": ["x"] * n, **columns}, n)])


def test_spelling() -> None:
    assert spell_control_token("author", "Anna  Akimova\t") == "<author_Anna__Akimova_>"
    assert spell_control_token("year", 987) == "<year_0987>"


def test_ids_follow_first_appearance_author_city_year() -> None:
    ids, front = assign_ids(table(author=["B", None, "A", "B"], city=[None, "X", "X", None], year=[1, 1, 2, None]), 100, {})
    assert ids == {"<author_B>": 100, "<year_0001>": 101, "<city_X>": 102, "<author_A>": 103, "<year_0002>": 104}
    assert front.tolist() == [[100, -1, 101], [-1, 102, 101], [103, 102, 104], [100, -1, -1]]


def test_no_metadata_gives_no_ids() -> None:
    ids, front = assign_ids(table(author=[None, None]), 100, {})
    assert ids == {} and front.tolist() == [[-1, -1, -1]] * 2


@pytest.mark.parametrize("names", [["Anna Akimova", "Anna_Akimova"], ["a b", "a\u00a0b"]])
def test_names_that_would_be_spelled_alike_are_refused(names: list[str]) -> None:
    with pytest.raises(FolioError, match="two control tokens would be spelled '<author_"):
        assign_ids(table(author=names), 100, {})


def test_a_name_cannot_take_a_tokens_spelling() -> None:
    with pytest.raises(FolioError, match="spelled"):
        assign_ids(table(author=["x"]), 100, {"<author_x>": 3})
