"""Metadata of documents, from columns and from file names."""

from __future__ import annotations

import json
import time
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from preprocess.errors import MisuseError
from tests.helpers.file_builds import build_files, read_stats, read_texts


def test_unreadable_years_are_counted(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "y": y} for i, y in enumerate([1999, "2001", "later", None, "", 20222, 1999.0])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = read_stats(build_files(tmp_path, tmp_path / "a.jsonl", year_column="y"))
    assert counts["authors"]["year"]["documents_by_value"] == {"1999": 2, "2001": 1}
    assert counts["mended"]["unreadable_year"] == 2
    some = build_files(tmp_path / "some", tmp_path / "a.jsonl", year_column="y", where='text != "t2"')
    assert read_stats(some)["mended"]["unreadable_year"] == 1  # not of a row that is not read


DATES = [date(1999, 5, 3), None, date(2001, 1, 1), date(1999, 12, 31)]


@pytest.mark.parametrize("type_", [pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns", "Asia/Tokyo")])
def test_years_of_dates_are_read(tmp_path: Path, type_: pa.DataType) -> None:
    table = pa.table({"text": list("abcd"), "y": pa.array(DATES, pa.date32()).cast(pa.timestamp("s")).cast(type_)})
    pq.write_table(table, tmp_path / "a.parquet")
    counts = read_stats(build_files(tmp_path, tmp_path / "a.parquet", year_column="y"))
    assert counts["authors"]["year"]["documents_by_value"] == {"1999": 2, "2001": 1}
    assert counts["mended"]["unreadable_year"] == 0


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_years_of_texts_in_iso_8601_are_read(tmp_path: Path, name: str) -> None:
    values = ["1999-05", "1999-05-03", "1999-05-03T12:00:00Z", "1999-05-03 12:00:00.5+03:00", " 1999-05-03 "]
    unreadable = ["05.03.1999", "1999-5-3", "19990503", "1999-05-03x", "1999-99-99"]
    rows = [{"text": f"t{i}", "y": value} for i, value in enumerate([*values, *unreadable])]
    table = pa.Table.from_pylist(rows)
    if name == "a.csv":
        pa.csv.write_csv(table, tmp_path / name)
    elif name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    counts = read_stats(build_files(tmp_path, tmp_path / name, year_column="y"))
    assert counts["authors"]["year"]["documents_by_value"] == {"1999": len(values)}
    assert counts["mended"]["unreadable_year"] == len(unreadable)


def test_template_writes_numbers_and_dates_as_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "n": pa.array([7, 8], pa.int16()), "d": pa.array([date(1999, 5, 3), date(2001, 1, 1)]),
            "t": pa.array([datetime(1999, 5, 3, 12, 30), datetime(2001, 1, 1)], pa.timestamp("us", "Europe/Moscow")),
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    build = build_files(tmp_path, tmp_path / "a.parquet", template="{n} {d} {t}", tokenizer="byte", authors=False)
    assert set(read_texts(build)) == {"7 1999-05-03 1999-05-03 12:30:00Z", "8 2001-01-01 2001-01-01 00:00:00Z"}


@pytest.mark.parametrize("column", [pa.array([1, 2]), pa.array([date(1999, 5, 3)] * 2)])
def test_text_column_must_be_text_and_the_error_says_how_to_write_other_types(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"n": column}), tmp_path / "a.parquet")
    with pytest.raises(MisuseError, match=r"expected text; pass --template '\{n\}' to write its values as text, or"):
        build_files(tmp_path, tmp_path / "a.parquet", text_column="n")


def test_years_are_trimmed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,y\na, 1999 \nb,1\n")
    counts = read_stats(build_files(tmp_path, tmp_path / "a.csv", year_column="y"))
    assert counts["authors"]["year"]["documents_by_value"] == {"1": 1, "1999": 1}


def test_metadata_is_parsed_from_file_names(mirror: Path, tmp_path: Path) -> None:
    pattern = r"(?P<year>\d{4})-(?P<author>\w+)"
    result = build_files(tmp_path, mirror / "inaugural", name_pattern=pattern, invalid_utf8="replace")
    special = {i: t for t, i in result.manifest.special_tokens.items()}
    for split in ("train", "val"):
        for number, entry in enumerate(result.docs(split)):
            year, author = result.manifest.sources[int(entry["source"])]["name"].removesuffix(".txt").split("-")
            ids = result.document(split, number)
            assert [special[int(i)] for i in ids[:2]] == [f"<author_{author}>", f"<year_{year}>"]
    with pytest.raises(MisuseError, match="does not match '1789-Washington.txt'"):
        build_files(tmp_path, mirror / "inaugural", name_pattern="(?P<year>9999)")
    begin = time.perf_counter()
    with pytest.raises(MisuseError, match="does not match"):
        build_files(tmp_path, mirror / "inaugural", name_pattern="(?P<author>(?:a+)+)$")
    assert time.perf_counter() - begin < 5
