"""The same table in every format gives the same documents."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import MisuseError
from tests.helpers.file_builds import build_files, read_stats, read_texts

ROWS = [
    {
        "text": f"text {i}",
        "who": "Анна" if i % 3 else None,
        "when": 1900 + i % 5,
        "lang": "ru" if i % 2 else "en",
        "score": i / 10,
        "q": f"{{{i}}}",
    }
    for i in range(80)
]


@pytest.fixture(params=["jsonl", "jsonl.gz", "csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with ROWS in each format."""
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=9)
    elif request.param == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        data = "\n".join(json.dumps(row) for row in ROWS).encode()
        path.write_bytes(gzip.compress(data) if request.param.endswith("gz") else data)
    return path


@pytest.mark.usefixtures("partition_sizes")
def test_columns_conditions_and_templates_agree_in_every_format(table: Path, tmp_path: Path) -> None:
    overrides = {"author_column": "who", "year_column": "when", "lang_column": "lang", "group_column": "when"}
    result = build_files(
        tmp_path, table, where='lang == "ru" and score >= 2.5', template="Q: {q}\nA: {text}", **overrides
    )
    expected = [row for row in ROWS if row["lang"] == "ru" and row["score"] >= 2.5]
    assert read_texts(result) == [f"Q: {row['q']}\nA: {row['text']}" for row in expected]
    counts = read_stats(result)
    assert counts["documents"]["filtered"] == len(ROWS) - len(expected)
    num_authors = sum(row["who"] is not None for row in expected)
    assert set(counts["languages"]) == {"ru"} and counts["authors"]["author"]["documents"] == num_authors
    assert set(counts["authors"]["year"]["documents_by_value"]) == {str(row["when"]) for row in expected}
    # The years are the groups, so no year is on both sides.
    years = {i for token, i in result.manifest.special_tokens.items() if token.startswith("<year_")}
    sides = {
        s: {i for n in range(len(result.docs(s))) for i in result.document(s, n).tolist() if i in years}
        for s in ("train", "val")
    }
    assert sides["train"] and sides["val"] and not sides["train"] & sides["val"]


def test_missing_column_is_reported_before_any_work(table: Path, tmp_path: Path) -> None:
    for overrides, message in (
        ({"text_column": "body"}, r"has no column 'body', it has text, who"),
        ({"where": 'language == "en"'}, "has no column 'language'"),
        ({"template": "{question}"}, "has no column 'question'"),
    ):
        with pytest.raises(MisuseError, match=message):
            build_files(tmp_path, table, **overrides)
    assert not (tmp_path / ".x.work").exists()
