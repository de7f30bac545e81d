"""The CSV reader."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.csv import read_csv
from preprocess.recipes.schema import Recipe
from tests.helpers.file_builds import build_files, read_stats, read_texts
from tests.preprocess.readers.helpers import (
    RejectsInMemory,
    count_arrow_memory,
    describe,
    iter_texts,
    list_texts,
)


def test_read_csv_reads_quotes_and_rejects_rows_of_wrong_length(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,"a, ""quoted""\nline"\n2\n3,plain,too,many\n4,NA\n5,last\n')
    result = build_files(tmp_path, path)
    assert (
        read_texts(result) == ['a, "quoted"\nline', "NA", "last"] and read_stats(result)["documents"]["malformed"] == 2
    )
    assert len((tmp_path / ".x.work/refused.jsonl").read_text().splitlines()) == 2
    path.write_text("text,text\na,b\n")
    with pytest.raises(MisuseError, match="has two columns of the same name"):
        build_files(tmp_path, path)


def read_rows(input_file: InputFile, recipe: Recipe) -> list[Any]:
    """Return the texts, the malformed rows and the warning, or the error, if there is one."""
    rejects, texts = RejectsInMemory(), []
    try:
        for records in read_csv(input_file, recipe, rejects):
            texts += records.columns["text"].to_pylist()
    except FolioError as e:
        return [str(e)]
    return [texts, rejects.malformed, rejects.counts, rejects.reasons.as_list()]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["text\n", "id,text\r\n", '\ufeff"id",text\r', "\n\n\ufeffid,text\n"]),
    st.text('a,"\\\r\n\ufeffé', max_size=40),
    st.integers(0, 40),
    st.sampled_from([{}, {"escape": "\\"}, {"quotes": False}]),
)
def test_size_of_blocks_changes_no_csv_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str, rows: str, invalid: int, dialect: dict[str, Any]
) -> None:
    monkeypatch.setattr("preprocess.readers.csv.MIN_LINES", 3)
    monkeypatch.setattr("preprocess.readers.csv_quotes.MIN_LINES", 3)
    path, data = tmp_path / "a.csv", rows.encode()
    path.write_bytes(header.encode() + data[:invalid] + b"\xff" + data[invalid:])
    input_file, recipe = describe(path, **dialect)
    found = []
    for size in (1 << 20, 1, 2, 5):
        monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", max(size, 3 if header[0] == "\ufeff" else 1))
        found.append(read_rows(input_file, recipe))
    assert found[1:] == found[:1] * 3


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_rows_are_those_of_the_standard_library(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", 7)
    texts = ["plain", "", 'said "a, b"', "two\r\nlines", '"', '""', ",", "\r", '5" disk', 'x,"', "\n\n", "é" * 20] * 3
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, csv.unix_dialect, lineterminator=end).writerows(
            [["text", "n"], *([text, i] for i, text in enumerate(texts))]
        )
    assert list_texts(tmp_path / "a.csv") == texts


def test_quotes_inside_of_unquoted_values_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 'text,n\n5" disk,1\n"3"" or 5"" disk\n",2\n"a"b"c",3\n6" and 7",4\n'
    (tmp_path / "a.csv").write_text(rows)
    for size in (1 << 20, 3, 1):
        monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", size)
        assert list_texts(tmp_path / "a.csv") == ['5" disk', '3" or 5" disk\n', 'ab"c"', '6" and 7"']


def test_line_ends_inside_of_quotes_are_kept_between_blocks(tmp_path: Path) -> None:
    text = "a" * ((8 << 20) - 7) + "\r\nb"  # the first block of 8 MB ends after the carriage return
    (tmp_path / "a.csv").write_bytes(f'text\n"{text}"\n'.encode())
    assert (tmp_path / "a.csv").read_bytes()[(8 << 20) - 1 :].startswith(b"\r\n")
    assert list_texts(tmp_path / "a.csv") == [text]


def test_quote_that_is_not_closed_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,a\n2\n3,"b\n4,c\n' + "5,d\n" * 1000)
    for oversized in ("error", "skip"):
        with pytest.raises(FolioError, match=r"a.csv: a quote that is opened in row 4 is not closed; close it"):
            list_texts(path, oversized=oversized)
    path.write_text('id,"text\n1,a\n')
    with pytest.raises(FolioError, match=r"a.csv has no CSV header \(a quote is not closed\)"):
        list_texts(path)


def test_csv_row_that_is_too_long_is_an_error_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", 64)
    monkeypatch.setattr("preprocess.readers.csv.get_max_record_bytes", lambda recipe: 200)
    path = tmp_path / "a.csv"
    texts = ["a", "b" * 190, "c" * 300, "d", 'e"\n' * 200, "f"]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    with pytest.raises(FolioError, match=r"a.csv: row 4 has more than .* bytes; shorten it, .* --oversized skip"):
        list_texts(path)
    for size in (1, 7, 64, 199):
        monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", size)
        rejects = RejectsInMemory()
        assert list_texts(path, rejects, oversized="skip") == ["a", "b" * 190, "d", "f"]
        assert rejects.counts["oversized"] == 2
    path.write_text('id,text\n1,a\n2,"' + "b\n" * 200)
    with pytest.raises(FolioError, match=r"row 3 has more than .* bytes; close the quote that is opened in it, or"):
        list_texts(path)
    with pytest.raises(FolioError, match=r"a quote that is opened in row 3 is not closed"):
        list_texts(path, oversized="skip")


def test_malformed_row_that_is_not_utf8_is_rejected(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\n1,a\n\n\xff,\xfe,x\r\n2,b\n3\n4,\xc3\xa9")
    rejects = RejectsInMemory()
    assert list_texts(tmp_path / "a.csv", rejects) == ["a", "b", "é"]
    assert rejects.malformed == [
        ("row 3", "expected 2 values, got 3", b"\xff,\xfe,x"),
        ("row 5", "expected 2 values, got 1", b"3"),
    ]
    assert capfd.readouterr() == ("", "")


def test_csv_header_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for data, message in (
        (
            b"text,\xff\na,b\n",
            r"the header of .*a.csv is not UTF-8: byte 0xff .*pass the encoding of the file, with --encoding",
        ),
        (b"text," + b"x" * 200_000, r"has no CSV header \(field larger than field limit"),
        (b"text," + b"x," * (5 << 20), r"has no CSV header \(it has more than 8,388,608 bytes\)"),
    ):
        path.write_bytes(data)
        with pytest.raises(FolioError, match=message):
            list_texts(path)


def test_csv_with_many_columns_is_read(tmp_path: Path) -> None:
    num_columns = 100_000
    rows = [",".join(f"{start}{i}" for i in range(num_columns)) for start in ("column", *map(str, range(20)))]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    assert list_texts(tmp_path / "a.csv", text_column="column7") == [f"{i}7" for i in range(20)]


def test_unused_columns_of_a_csv_file_may_have_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,x,x,\na,1,2,3\n")
    assert list_texts(tmp_path / "a.csv") == ["a"]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_needs_memory_for_one_block(suffix: str, tmp_path: Path) -> None:
    rows = b"id,text\n" + b"1,some text of a row\n" * 1_500_000
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(rows, 1) if suffix.endswith("gz") else rows)
    with count_arrow_memory() as pool:
        num_rows = sum(map(len, iter_texts(path)))
    assert num_rows == 1_500_000 and pool.max_memory() < 45_000_000


def test_messages_number_rows_as_they_are_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.readers.record_sizes.get_max_record_bytes", lambda recipe: 100)
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,other\n1,a\n2\n" + b"4,%s\n" % (b"x" * 60) + b"5,bad \xff\n")
    rejects = RejectsInMemory()
    with pytest.raises(FolioError, match="a.csv: row 4 has more than 100 bytes"):
        list_texts(path, rejects, template="{text} {other} {other}")
    assert rejects.malformed == [("row 3", "expected 2 values, got 1", b"2")]
    with pytest.raises(FolioError, match="byte 0xff at offset 4 of row 5 "):
        list_texts(path, template="{text} {other}")
