"""Who stays and on which side, whatever the partitions and buckets; and what control tokens are called."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.build.dedup_and_split import decide_sides, positions_before
from preprocess.build.shard_layout import lay_out_shards
from preprocess.build.work_dir import DOCUMENT, DROPPED, LENGTH, WorkFolder
from preprocess.documents import HELD_OUT, TRAIN, UNKNOWN, VAL
from preprocess.errors import FolioError
from preprocess.recipes.schema import Recipe
from preprocess.tokenizers.characters import ByteTokenizer

FIXTURE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def hash_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, 16, np.uint8)


def write(
    work: WorkFolder, contents: list[int], groups: list[int], boundaries: list[int], **columns: list[int]
) -> list[int]:
    """Documents with these contents and groups, in partitions cut at `boundaries`; the number in each partition."""
    table = np.zeros(len(contents), DOCUMENT)
    table["hash"] = [hash_of(c) for c in contents]
    table["group"] = [hash_of(1000 + g) for g in groups]
    table["side"], table["author"], table["city"], table["year"], table["lang"], table["text_bytes"] = (
        UNKNOWN,
        -1,
        -1,
        -1,
        -1,
        1,
    )
    for name, values in columns.items():
        table[name] = values
    edges = [0, *sorted(boundaries), len(contents)]
    for number, (a, b) in enumerate(itertools.pairwise(edges)):
        table[a:b].tofile(work.file(number, "docs"))
        np.full(b - a, 10, LENGTH).tofile(work.file(number, "lengths"))
    return [b - a for a, b in itertools.pairwise(edges)]


def sides_of(work: WorkFolder, counts: list[int]) -> np.ndarray:
    return np.concatenate([work.sides(number) for number in range(len(counts))])


def recipe(**settings_: Any) -> Recipe:
    return Recipe(corpus="x", **settings_)


@FIXTURE
@given(
    st.lists(st.tuples(st.integers(0, 25), st.integers(0, 12)), min_size=4, max_size=60),
    st.lists(st.integers(0, 60), max_size=3),
    st.floats(0.1, 0.9),
    st.integers(0, 9),
    st.sampled_from([1, 5, 1000]),
)
def test_the_first_of_equals_stays_and_exactly_the_share_of_groups_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs, boundaries, val_fraction, seed, rows_per_bucket
) -> None:
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", rows_per_bucket)
    work, contents, groups = WorkFolder(tmp_path), [c for c, _ in pairs], [g for _, g in pairs]
    counts = write(work, contents, groups, [min(b, len(pairs)) for b in boundaries])
    firsts = {c: i for i, c in reversed(list(enumerate(contents)))}
    kept = [i for i, c in enumerate(contents) if firsts[c] == i]
    distinct = {groups[i] for i in kept}
    num_val = round(len(distinct) * val_fraction)
    if num_val in (0, len(distinct)):
        with pytest.raises(FolioError, match="one side would be empty|are one group, which cannot be split"):
            decide_sides(recipe(val_fraction=val_fraction, seed=seed), work, counts)
        return
    decided = decide_sides(recipe(val_fraction=val_fraction, seed=seed), work, counts)
    sides = sides_of(work, counts)
    assert np.flatnonzero(sides != DROPPED).tolist() == kept and decided.dropped["duplicates"] == len(contents) - len(
        kept
    )
    val = {groups[i] for i in kept if sides[i] == VAL}
    assert len(val) == num_val and not val & {groups[i] for i in kept if sides[i] == TRAIN}
    assert not list(tmp_path.glob("*.bucket"))
    # Neither partitions nor buckets nor other documents of the same groups decide anything.
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", 3)
    again = write(work, contents, groups, [])
    decide_sides(recipe(val_fraction=val_fraction, seed=seed), work, again)
    assert (sides_of(work, again) == sides).all()


def test_seeds_choose_differently(tmp_path: Path) -> None:
    work, results = WorkFolder(tmp_path), []
    counts = write(work, list(range(500)), list(range(500)), [])
    for seed in (0, 1):
        decide_sides(recipe(seed=seed), work, counts)
        results.append(sides_of(work, counts))
    assert (results[0] != results[1]).any() and all(np.count_nonzero(r == VAL) == 50 for r in results)


def test_a_threshold_moves_no_document_when_others_come(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    counts = write(work, list(range(400)), list(range(400)), [100])
    decide_sides(recipe(split="threshold", val_fraction=0.25), work, counts)
    before = sides_of(work, counts)
    assert 70 < np.count_nonzero(before == VAL) < 130
    counts = write(work, list(range(500)), list(range(500)), [250])
    decide_sides(recipe(split="threshold", val_fraction=0.25), work, counts)
    assert (sides_of(work, counts)[:400] == before).all()


@pytest.mark.parametrize("max_documents", [1, 2, 7, 39, 40, 99])
def test_the_cap_keeps_whole_groups_and_never_more(tmp_path: Path, max_documents: int) -> None:
    work = WorkFolder(tmp_path)
    counts = write(work, list(range(40)), [i // 2 for i in range(40)], [13])
    try:
        decided = decide_sides(recipe(max_documents=max_documents, val_fraction=0.5), work, counts)
    except FolioError:
        assert max_documents < 4  # two groups at the least, or there is nothing to split
        return
    sides = sides_of(work, counts)
    kept = np.flatnonzero(sides != DROPPED)
    assert len(kept) == min(max_documents // 2 * 2, 40) and decided.dropped["over_max_documents"] == 40 - len(kept)
    assert len({k // 2 for k in kept.tolist()}) * 2 == len(kept)


def test_given_sides_and_what_becomes_of_tests(tmp_path: Path) -> None:
    given_split = {"split": "given", "split_column": "s"}
    work = WorkFolder(tmp_path)
    counts = write(work, list(range(6)), list(range(6)), [2], side=[TRAIN, VAL, HELD_OUT, TRAIN, VAL, HELD_OUT])
    decided = decide_sides(recipe(**given_split), work, counts)
    assert (
        sides_of(work, counts).tolist() == [TRAIN, VAL, DROPPED, TRAIN, VAL, DROPPED]
        and decided.dropped["held_out"] == 2
    )
    counts = write(work, list(range(3)), list(range(3)), [], side=[HELD_OUT, VAL, HELD_OUT])
    decided = decide_sides(recipe(**given_split), work, counts)
    assert sides_of(work, counts).tolist() == [TRAIN, VAL, TRAIN] and decided.dropped["held_out"] == 0
    counts = write(work, list(range(3)), list(range(3)), [], side=[TRAIN] * 3)
    with pytest.raises(FolioError, match="the validation side of x would be empty with the given split"):
        decide_sides(recipe(**given_split), work, counts)


def test_positions_go_on_where_the_partition_before_ended() -> None:
    before = positions_before([[[0, 5]], [[0, 3], [1, 4]], [[2, 9], [3, 1]], [[3, 2]]])
    assert [b.tolist() for b in before] == [[0], [5, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def receipt(**lists: list[str]) -> dict[str, Any]:
    return {"num_positions": [[0, 4]], "lists": {"author": [], "city": [], "lang": [], **lists}}


def placed(work: WorkFolder, counts: list[int], receipts: list[dict[str, Any]], **settings_: Any):
    decided = decide_sides(recipe(val_fraction=0.5, **settings_), work, counts)
    return lay_out_shards(recipe(**settings_), work, decided, receipts, ByteTokenizer(has_eot=True))


def test_ids_follow_first_appearance_author_city_year(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    columns = {"author": [0, -1, 0, 1], "city": [-1, 0, 0, -1], "year": [1, 1, 2, -1]}
    counts = write(work, [1, 2, 3, 4], [1, 2, 3, 4], [2], **columns)
    # The second partition numbers its own authors: 0 is A, 1 is B.
    result = placed(work, counts, [receipt(author=["B"], city=["X"]), receipt(author=["A", "B"], city=["X"])])
    wanted = {"<author_B>": 257, "<year_0001>": 258, "<city_X>": 259, "<author_A>": 260, "<year_0002>": 261}
    assert result.control_ids == wanted
    assert result.lookups[1]["author"].tolist() == [260, 257] and result.lookups[1]["year"][2] == 261


@pytest.mark.parametrize("names", [["Anna Akimova", "Anna_Akimova"], ["a b", "a\u00a0b"]])
def test_names_that_would_be_spelled_alike_are_refused(tmp_path: Path, names: list[str]) -> None:
    work = WorkFolder(tmp_path)
    counts = write(work, [1, 2], [1, 2], [], author=[0, 1])
    with pytest.raises(FolioError, match="two control tokens would be spelled '<author_"):
        placed(work, counts, [receipt(author=names)])


def test_shards_end_at_a_documents_end_across_partitions(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    counts = write(work, list(range(40)), list(range(40)), [7, 8, 30])
    result = placed(work, counts, [receipt()] * 4, shard_tokens=35)
    for split in ("train", "val"):
        plans = [plan for plan in result.shards if plan.split == split]
        assert [plan.num_tokens for plan in plans] == [40] * 5 and [plan.number for plan in plans] == [0, 1, 2, 3, 4]
    for plan, segments in zip(result.shards, result.segments, strict=True):
        assert sum(s.num_tokens for s in segments) == plan.num_tokens and segments[0].place.num_tokens == 0
