"""What a build reports about records that it could not use."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.build.read_rejects import find_rejects, format_reject, read_rejects, summarize_rejects
from preprocess.errors import FolioError, MisuseError
from preprocess.readers import records
from tests.helpers.file_builds import build_files

NUMBER = "text must be text, got number; --template '{text}' writes it as text"


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_build_without_documents_reports_reasons_and_keeps_rejects(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('["a list"]\n{"text": 5}\n')
    with pytest.raises(FolioError, match="no document is left of own: 2 documents read; 2 malformed"):
        build_files(tmp_path, tmp_path / "a.jsonl")
    assert len((tmp_path / ".x.work/refused.jsonl").read_text().splitlines()) == 2
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n')
    with pytest.raises(FolioError, match="1 document read; 1 filtered"):
        build_files(tmp_path, tmp_path / "a.jsonl", where="n > 5")


def test_build_warns_about_rejected_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"body": "c"}, {"text": 7}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_files(tmp_path, tmp_path / "a.jsonl")
    err = capsys.readouterr().err
    assert "some documents were dropped or repaired: 1 malformed, 1 null text" in err
    assert "2 records that could not be read, or were changed, were saved in" in err
    assert f"refused.jsonl; `preprocess rejects {tmp_path / 'x'}` prints them" in err


def test_error_gives_the_only_reason_and_its_first_place(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *(f'{{"text": {n}}}' for n in range(62)))
    with pytest.raises(FolioError) as caught:
        build_files(tmp_path, path)
    assert f"62 malformed; the reason of all 62: {NUMBER} (first at a.jsonl, line 1 (byte 0));" in str(caught.value)


def test_error_gives_the_most_frequent_reason_and_its_first_place(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", "[1]", "not JSON", '{"text": 5}', '{"text": 6}', '{"text": null}')
    with pytest.raises(FolioError) as caught:
        build_files(tmp_path, path)
    assert f"the most frequent reason, of 2: {NUMBER} (first at a.jsonl, line 3 (byte 13))" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "settings", "expected"),
    [
        (['{"text": null}', "{}"], {}, "of all 2: text is null (first at a.jsonl, line 1 (byte 0))"),
        (['{"a": null}'], {"template": "{a}"}, "the reason: a column of the template is null (at a.jsonl, line 1"),
        (['{"text": "a", "n": 1}'], {"where": "n > 5"}, "does not satisfy the condition (at a.jsonl, line 1"),
        (['{"text": "a"}', '{"text": ""}'], {"min_characters": 9}, "shorter than min_characters (first at a.jsonl,"),
        (['{"text": ""}', '{"text": ""}'], {}, "no text, or none is left by the cleaning rules (first at a.jsonl, doc"),
    ],
)  # fmt: skip
def test_error_explains_documents_that_the_recipe_drops(
    tmp_path: Path, lines: list[str], settings: dict[str, object], expected: str
) -> None:
    with pytest.raises(FolioError) as caught:
        build_files(tmp_path, write_lines(tmp_path / "a.jsonl", *lines), **settings)
    assert expected in str(caught.value)


def test_error_names_rows_of_csv_and_parquet(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.csv", "text,b", "only one", "one,two,three", "only")
    with pytest.raises(FolioError) as caught:
        build_files(tmp_path, path)
    assert "of all 3: expected 2 values, got 1 (first at a.csv, row 2)" in str(caught.value)
    table = pa.table({"text": pa.array([None] * 5, pa.string())})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(FolioError) as caught:
        build_files(tmp_path, tmp_path / "a.parquet")
    assert "of all 5: text is null (first at a.parquet, row 0)" in str(caught.value)


def test_rows_of_later_partitions_are_numbered_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 1)
    texts = ["a", "b", "c", None, "d", None]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=2)
    build_files(tmp_path, tmp_path / "a.parquet")
    path = find_rejects(str(tmp_path / "x"))
    assert path is not None and [entry["place"] for entry in read_rejects(path)] == ["row 3", "row 5"]


def test_split_error_comes_after_a_warning_about_rejects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write_lines(tmp_path / "a.jsonl", '{"text": "a"}', "x")
    with pytest.raises(FolioError, match="cannot be split"):
        build_files(tmp_path, path)
    assert "some documents were dropped or repaired: 1 malformed; the reason: invalid JSON" in capsys.readouterr().err


def test_rejects_of_all_kinds_are_listed_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a", "y": "1999"}\n{"text": "\xff", "y": 1}\n{"text": null}\nnot JSON\n{"text": "b", "y": "?"}\n'
    )
    build_files(tmp_path, tmp_path / "a.jsonl", invalid_utf8="skip", year_column="y")
    path = find_rejects(str(tmp_path / "x"))
    assert path is not None
    found = {entry["kind"]: (entry["source"], entry["place"]) for entry in read_rejects(path)}
    assert found == {
        "invalid_utf8": ("a.jsonl", "byte 27"), "null_text": ("a.jsonl", "byte 49"),
        "malformed": ("a.jsonl", "byte 64"), "unreadable_year": ("a.jsonl", "byte 73"),
    }  # fmt: skip


def test_saved_records_are_limited_but_all_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_SAVED_RECORDS", 3)
    lines = ['{"text": "a"}', '{"text": "b"}', *['{"text": null}'] * 10]
    build = build_files(tmp_path, write_lines(tmp_path / "a.jsonl", *lines))
    assert summarize_rejects(tmp_path / "x")["number"] == 3
    assert json.loads((build.folder / "stats.json").read_text())["documents"]["null_text"] == 10


def test_find_rejects_knows_builds_without_rejects_and_no_build(tmp_path: Path) -> None:
    build_files(tmp_path, write_lines(tmp_path / "a.jsonl", '{"text": "a"}', '{"text": "b"}'))
    assert find_rejects(str(tmp_path / "x")) is None
    assert summarize_rejects(tmp_path / "x") == {"number": 0, "file": None, "records": []}
    with pytest.raises(MisuseError, match="there is neither a build"):
        find_rejects(str(tmp_path / "y"))


def test_rejects_are_printed_on_one_line_without_control_characters() -> None:
    entry = {"source": "a\x1b.txt", "place": "byte 1", "reason": "bad\nthing", "record": "\x1b[31m" + "x" * 500}
    line = format_reject(entry)
    assert line.isprintable() and len(line) < 200 and line.startswith("a\\x1b.txt, byte 1: bad\\nthing: \\x1b[31mxxx")


@pytest.mark.parametrize("content", [b"not JSON\n", b"[]\n", b'{"source": 1}\n', b"\xff\n", b'{"source": "a"'])
def test_damaged_list_of_rejects_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "refused.jsonl").write_bytes(content)
    with pytest.raises(FolioError, match=r"line 1 of .*refused.jsonl is damaged"):
        list(read_rejects(tmp_path / "refused.jsonl"))
