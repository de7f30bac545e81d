"""Counts by language and author, leaks between the splits, and limits on distinct values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.build import build
from preprocess.build.distinct_values import DistinctValues
from preprocess.build.stats import format_stats
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files, read_stats


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_totals_by_language_and_author_are_sums_over_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.build.work_dir.CHUNK_DOCUMENTS", 7)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 1000)
    languages = [None, "ru", "en", "unknown", "de"]
    rows = [
        {
            "text": "x" * (i % 11 + 1),
            "lang": languages[i * i % 5],
            "who": f"A{i % 13}" if i % 3 else None,
            "year": i % 4,
        }
        for i in range(100)
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    columns = {"lang_column": "lang", "author_column": "who", "year_column": "year"}
    stats = read_stats(build_files(tmp_path, path, **columns))
    for language in ("ru", "en", "unknown", "de"):
        texts = [row["text"] for row in rows if (row["lang"] or "unknown") == language]
        found = stats["languages"][language] if texts else {"documents": 0, "text_bytes": 0}
        assert found["documents"] == len(texts) and found["text_bytes"] == sum(map(len, texts))
    for field, values in (("author", [row["who"] for row in rows]), ("year", [str(row["year"]) for row in rows])):
        expected = {value: values.count(value) for value in values if value is not None}
        assert stats["authors"][field]["documents_by_value"] == expected
        assert stats["authors"][field]["documents"] == sum(expected.values())
        assert stats["authors"][field]["distinct"] == len(expected)


def test_stats_list_the_most_frequent_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.build.stats.MAX_LISTED_VALUES", 3)
    rows = [{"text": f"text {i} {j}", "lang": f"l{i}"} for i in range(8) for j in range(i + 1)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    built = build_files(tmp_path, path, lang_column="lang")
    stats = read_stats(built)
    assert {tag: totals["documents"] for tag, totals in stats["languages"].items()} == {"l7": 8, "l6": 7, "l5": 6}
    assert stats["languages_not_listed"] == 5 and len(built.manifest.languages) == 8
    monkeypatch.setattr("preprocess.build.stats.MAX_PRINTED_LANGUAGES", 2)
    lines = format_stats((built.folder / "stats.json").read_bytes())
    assert [line.split()[0] for line in lines if line.startswith("l")] == ["l6", "l7"]
    assert "and 6 more languages, each with fewer documents" in lines


@pytest.mark.parametrize(
    "settings_",
    [
        {"split": "given", "split_column": "side"},
        {"split": "exact", "group_column": "who"},
        {"split": "threshold", "group_column": "who"},
        {"split": "exact", "group_by": "position"},
    ],
)
def test_texts_in_both_splits_are_counted_and_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings_: dict[str, str]
) -> None:
    rows = [{"text": f"text {i % 4}", "side": "val" if i % 8 > 4 else "train", "who": str(i)} for i in range(80)]
    rows.append({"text": "only in val", "side": "val", "who": "0"})
    path = write_rows(tmp_path / "a.jsonl", rows)
    settings_ = {"tokenizer": "byte", **({} if settings_["split"] == "given" else {"val_fraction": 0.5}), **settings_}
    line = " texts are in both train and val, so the validation loss will be too low; pass --dedup to keep each text"
    for name, dedup in (("with", False), ("without", True)):
        recipe = load_recipe(None, inputs=(str(path),), dedup=dedup, **settings_)
        build(recipe, tmp_path / name, name=name, replace=False, progress=Progress())
        stats, err = read_stats(Build(tmp_path / name)), capsys.readouterr().err
        if dedup:
            assert "equal_texts_on_both_sides" not in stats["split"] and line not in err
        else:
            num_texts = stats["split"]["equal_texts_on_both_sides"]
            assert num_texts == (3 if settings_["split"] == "given" else 4)
            warnings = [warning for warning in err.splitlines() if f"{num_texts}{line}" in warning]
            assert len(warnings) == 1
            assert_one_line(warnings[0])


def test_contiguous_split_counts_passages_in_both_splits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same passage\n\n" * 40)
    settings_ = {"document": "passage", "passage_characters": 18, "split": "contiguous"}
    stats = read_stats(build_files(tmp_path, tmp_path / "a.txt", **settings_))
    assert stats["split"]["equal_texts_on_both_sides"] >= 1


@pytest.mark.parametrize(("limit", "value"), [("MAX_DISTINCT_VALUES", 5), ("MAX_CHARACTERS", 23)])
def test_distinct_values_have_limits(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(f"preprocess.build.distinct_values.{limit}", value)
    values = DistinctValues("city")
    assert values.number(["Rome", "Oslo", "Rome", "Bern"]) == [0, 1, 0, 2]
    assert values.number(["Bern", "Lima", "Riga"]) == [2, 3, 4] and list(values)[3:] == ["Lima", "Riga"]
    assert values.number(["Oslo"] * 9) == [1] * 9
    with pytest.raises(FolioError, match="cities.* such as 'Kyiv'; choose another --city-column") as caught:
        values.number(["Rome", "Kyiv"])
    assert_one_line(str(caught.value))


@pytest.mark.parametrize("field", ["lang", "author"])
def test_build_rejects_too_many_different_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """The limit holds for the whole corpus, although each partition has few values."""
    monkeypatch.setattr("preprocess.build.distinct_values.MAX_DISTINCT_VALUES", 30)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 500)
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"text {i}", "v": f"v{i}"} for i in range(31)])
    with pytest.raises(FolioError, match="more than 30 different"):
        build_files(tmp_path, path, **{f"{field}_column": "v"})
    assert not (tmp_path / "x").exists()


def test_distinct_values_of_seventeen_million_characters_are_too_many() -> None:
    values = DistinctValues("author")
    values.number("a" * 100_000 + str(i) for i in range(160))
    with pytest.raises(FolioError, match="authors of more than 16,777,216 characters in total"):
        values.number("b" * 100_000 + str(i) for i in range(10))
