"""Quotes in CSV files that are wrong, and quotes that a backslash escapes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.build import build
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.stream import TokenStream
from tests.helpers.file_builds import build_files, read_stats, read_texts
from tests.preprocess.readers.helpers import RejectsInMemory, list_texts
from tests.preprocess.stream.helpers import open_files, read_documents

ROWS = [f"{i},review number {i}" for i in range(40)]


def write_rows(path: Path, *changed: tuple[int, str], end: str = "\n") -> Path:
    """Write ROWS with a header, some of them changed."""
    rows = dict(enumerate(ROWS)) | dict(changed)
    path.write_bytes(end.join(["id,text", *rows.values(), ""]).encode())
    return path


@pytest.mark.parametrize("block_bytes", [1 << 20, 7])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "closing", ['30,"well quoted"', '30,"a ""quote"""', '30,6" tall', '30,"",\n31,"x"', '30,a "quote" inside']
)
def test_quote_that_swallows_rows_is_an_error_that_names_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: str, end: str, block_bytes: int
) -> None:
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", block_bytes)
    path = write_rows(tmp_path / "a.csv", (3, '3,"5 inch screen'), (30, closing.replace("\n", end)), end=end)
    with pytest.raises(FolioError, match=r"a.csv: a quote that is opened in row 5 is closed in the middle of a v"):
        list_texts(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quote_that_is_closed_far_away_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    path = write_rows(tmp_path / "a.csv", (3, '3,"5 inch screen'), (30, '30,a screen of 6"'), end=end)
    rejects = RejectsInMemory()
    texts = list_texts(path, rejects)
    assert len(texts) == len(ROWS) - 27 and rejects.counts == {"wrong_quotes": 1}
    recipe = load_recipe(None, inputs=(str(path),), tokenizer="byte")
    build(recipe, tmp_path / "x", name="x", replace=False, progress=Progress())
    found = "1 wrong quotes; the reason: a quoted value has 28 lines that look like rows (at a.csv, row 5)"
    assert found in capsys.readouterr().err
    lines: list[str] = []
    corpus = open_files(path, val_fraction=1e-9, log=lines.append)
    assert len(read_documents(TokenStream(corpus, block_size=50, tail="pad", stream_buffer=0))) == len(texts)
    assert len(lines) == 1 and found in lines[0]


def test_rows_with_wrong_quotes_are_counted_in_the_statistics(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.csv", (3, '3,"said "hello" and left"'), (7, '7,"x" y'))
    result = build_files(tmp_path, path)
    assert read_texts(result)[3] == 'said hello" and left"'
    assert read_stats(result)["mended"]["wrong_quotes"] == 2
    assert "wrong_quotes" not in read_stats(build_files(tmp_path, write_rows(path)))["mended"]


def test_swallowed_rows_are_found_beside_other_rows(tmp_path: Path) -> None:
    rows = [
        '"two\nlines",a,b', '1,"' + "x,y,z\n" * 12 + '",b', "plain,a,b", '2,"open\n' + "x,y,z\n" * 9 + '",b',
        '3,"open\n' + "x,y,z\n" * 8 + '",b', '"2,open,b\n' + "x,y,z\n" * 20 + 'x,y",z', '4,"' + "a,,\n" * 30 + '"',
    ]  # fmt: skip
    (tmp_path / "a.csv").write_text("id,text,n\n" + "\n\n".join(rows))
    rejects = RejectsInMemory()
    list_texts(tmp_path / "a.csv", rejects)
    assert rejects.counts["wrong_quotes"] == 1
    (found,) = rejects.reasons.as_list()
    assert (found.place, found.reason) == ("row 7", "a quoted value has 22 lines that look like rows")


def test_lines_of_a_text_are_not_taken_for_rows_with_other_values(tmp_path: Path) -> None:
    rows = {
        "Surname, Name\n" * 20: 0,  # a space after the comma
        '"key": 1,\n' * 20: 0,  # no second value
        "1,2\n" * 20: 0,  # numbers, no words
        "great,positive\n" * 20: 1,
    }
    for text, expected in rows.items():
        with open(tmp_path / "a.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), ("fine", "positive"), (text, "negative")])
        rejects = RejectsInMemory()
        assert list_texts(tmp_path / "a.csv", rejects) == ["fine", text]
        assert rejects.counts["wrong_quotes"] == expected


def test_texts_of_many_lines_are_not_warned_about(tmp_path: Path) -> None:
    poem = "Tyger, tyger\nburning bright,\nIn the forests of the night,\nWhat immortal hand, or eye,\ncould frame\n" * 9
    names = "".join(f"Name{i}, First\n" for i in range(50))
    code = 'print("a, b")\nx = "\\""\n' * 30
    lines = "no comma in any of these lines\n" * 40
    texts = [poem, names, code, lines, names + poem, "C:\\", '"', 'end with "quote"']
    for order in ((0, 1), (1, 0)):
        with open(tmp_path / "a.csv", "w", newline="") as file:
            rows = [("text", "n"), *((text, str(i)) for i, text in enumerate(texts))]
            csv.writer(file).writerows([row[i] for i in order] for row in rows)
        rejects = RejectsInMemory()
        assert list_texts(tmp_path / "a.csv", rejects) == texts and not rejects.counts


BACKSLASHES = [
    'id,text\n1,"say \\"hi\\" there"\n2,b\n',
    'id,text\n1,"say \\"hi, you\\", there"\n2,b\n',
    'id,text\n0,x\n1,"ends with \\""\n2,"b"\n',
    'id,text\n1,"ends with \\""\n2,b\n',
    'id,text\n1,"two\nlines \\"x\\""\n2,b\n',
]


@pytest.mark.parametrize("data", BACKSLASHES)
def test_quotes_after_backslashes_need_an_escape_character(tmp_path: Path, data: str) -> None:
    (tmp_path / "a.csv").write_text(data)
    row = 3 if "0,x" in data else 2
    with pytest.raises(
        FolioError, match=rf"a quote that is opened in row {row} is .*, pass --escape '\\'; otherwise d"
    ):
        list_texts(tmp_path / "a.csv")
    texts = list_texts(tmp_path / "a.csv", escape="\\")
    assert texts[-1] == "b" and '"' in texts[-2] and "\\" not in texts[-2]


def test_backslash_at_the_end_of_a_quoted_value_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n"C:\\","D:\\"\n1,"\\\\server\\"\n"\\",\\\n')
    rejects = RejectsInMemory()
    assert list_texts(tmp_path / "a.csv", rejects) == ["D:\\", "\\\\server\\", "\\"] and not rejects.counts


def test_escape_character_at_the_end_of_a_file_stands_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,a\n2,b\\")
    assert list_texts(tmp_path / "a.csv", escape="\\") == ["a", "b"]
    (tmp_path / "a.csv").write_text('id,text\n1,a\n2,"b\\"\n')
    with pytest.raises(FolioError, match="a quote that is opened in row 3 is not closed; close it, double the quotes"):
        list_texts(tmp_path / "a.csv", escape="\\")


@pytest.mark.parametrize("block_bytes", [1 << 20, 3])
def test_quotes_are_characters_if_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", block_bytes)
    texts = ['"Hello', 'he said "yes"', '"both"', 'a"b', '"', ""]
    (tmp_path / "a.tsv").write_text("\n".join(["id\ttext", *(f"{i}\t{text}" for i, text in enumerate(texts))]))
    assert list_texts(tmp_path / "a.tsv", quotes=False) == texts
    with pytest.raises(FolioError, match="row 2 is closed in the middle of a value; .*, or pass --no-quotes if"):
        list_texts(tmp_path / "a.tsv")


def test_error_about_quotes_names_the_row_in_a_build(tmp_path: Path) -> None:
    paths: list[Any] = [write_rows(tmp_path / "a.csv"), write_rows(tmp_path / "b.csv", (9, '9,"x'))]
    with pytest.raises(FolioError, match=r"b.csv: a quote that is opened in row 11 is not closed"):
        build_files(tmp_path, *paths)
