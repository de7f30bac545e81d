"""CSV files of all dialects: delimiters, quotes, escape characters and line ends."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.stream import TokenStream
from tests.helpers.file_builds import build_files, read_texts
from tests.preprocess.readers.helpers import RejectsInMemory, list_texts
from tests.preprocess.stream.helpers import open_files, read_documents

PROPERTY = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.sampled_from(list('ab",;\t|\\\r\n x\x01é😀\ufeff')), max_size=12)
DIALECTS = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t|:^ \x01"),
        "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    }
)


def write_csv(path: Path, rows: list[list[str]], **dialect: Any) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **dialect).writerows(rows)
    return path


def limit_to_dialect(rows: list[tuple[str, str]], dialect: dict[str, Any]) -> list[list[str]]:
    """Remove the line ends that Python's csv module before version 3.13 neither quotes nor escapes."""
    if dialect["quoting"] == csv.QUOTE_ALL or len(dialect["lineterminator"]) == 2:
        return [list(row) for row in rows]
    other = "\r" if dialect["lineterminator"] == "\n" else "\n"
    return [[value.replace(other, "") for value in row] for row in rows]


def read_columns(path: Path, **overrides: Any) -> list[list[str]]:
    """Return the rows with the columns `id` and `text`, after checking that all is well."""
    rejects = RejectsInMemory()
    columns = [list_texts(path, rejects, clean=(), text_column=name, **overrides) for name in ("id", "text")]
    assert not rejects.counts
    return [list(row) for row in zip(*columns, strict=True)]


@PROPERTY
@given(DIALECTS, st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.integers(3, 40))
def test_rows_that_the_standard_library_wrote_are_read_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: dict[str, Any], rows: list[tuple[str, str]], size: int
) -> None:
    expected = limit_to_dialect(rows, dialect)
    path = write_csv(tmp_path / "a.csv", [["id", "text"], *expected], **dialect)
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", size)
    overrides = {} if dialect["delimiter"] in ",;\t|" else {"delimiter": dialect["delimiter"]}
    assert read_columns(path, **overrides) == expected


@PROPERTY
@given(
    DIALECTS,
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6),
    st.integers(3, 40),
)
def test_escaped_rows_that_the_standard_library_wrote_are_read_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dialect: dict[str, Any],
    quoting: Any,
    rows: list[tuple[str, str]],
    size: int,
) -> None:
    dialect = {**dialect, "quoting": quoting, "escapechar": "\\", "doublequote": False}
    expected = limit_to_dialect(rows, dialect)
    path = write_csv(tmp_path / "a.csv", [["id", "text"], *expected], **dialect)
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", size)
    assert read_columns(path, escape="\\", delimiter=dialect["delimiter"]) == expected


ROWS = [
    [str(i), text] for i, text in enumerate(["plain", "with, comma", "semi;colon", "tab\there", "bar|bar", 'a "b"'])
]
TEXTS = [text for _, text in ROWS]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.tab", "a.psv", "A.TSV.gz"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n", "sep={}\r\n", '\ufeff"sep={}"\n\n'])
def test_delimiter_is_found_in_the_header(tmp_path: Path, name: str, delimiter: str, start: str) -> None:
    path = write_csv(tmp_path / "rows", [['a "b"', "text"], *ROWS], delimiter=delimiter)
    data = start.format(delimiter).encode() + path.read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert list_texts(tmp_path / name) == TEXTS


def test_suffix_decides_if_the_header_has_one_column(tmp_path: Path) -> None:
    for name, texts in (("a.csv", ["b", "x", "y"]), ("a.tsv", ["a, b", "x", "y"]), ("a.psv", ["a, b", "x", "y"])):
        (tmp_path / name).write_text(f"text\n{'a, b' if name != 'a.csv' else 'b'}\nx\ny\n")
        assert list_texts(tmp_path / name) == texts
    assert list_texts(tmp_path / "a.tsv", delimiter=",") == ["x", "y"]


def test_header_names_may_contain_other_delimiters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"id,text";x|text;text\n1;2;a,b|c\n')
    assert list_texts(tmp_path / "a.csv") == ["a,b|c"]
    (tmp_path / "a.csv").write_text('id,text;more,"text"\n1,2;3,a;b\n')
    assert list_texts(tmp_path / "a.csv") == ["a;b"]


def test_missing_column_is_reported_with_the_likely_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [["id", "body", "a,b"], ["1", "x", "y"]], delimiter=";")
    with pytest.raises(MisuseError, match=r"a.csv has no column 'text', it has id, body, a,b; choose another with"):
        list_texts(tmp_path / "a.csv")
    assert list_texts(tmp_path / "a.csv", text_column="body") == ["x"]
    with pytest.raises(MisuseError, match=r"column 'body' if its .* by ';', but not by '\\t'; pass --delimiter ';'"):
        list_texts(tmp_path / "a.csv", text_column="body", delimiter="\t")
    with pytest.raises(MisuseError, match=r"a.csv has no column 'id', it has id;body;a,b; choose"):
        list_texts(tmp_path / "a.csv", where='body == "x" and nothing == "y"', template="{id}", delimiter="\t")


def test_excel_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('\ufeffsep=;\r\nid;text;score\r\n1;"x ""y""";3,5\r\n2;a\nb;4\r\n'.encode())
    rejects = RejectsInMemory()
    assert list_texts(tmp_path / "a.csv", rejects, where="score >= 4") == []
    assert [row for row, *_ in rejects.malformed] == ["row 4", "row 5"]
    (tmp_path / "a.csv").write_bytes(b'id,text,score\r\n1,"x","3,5"\r\n2,y,4.5\r\n')
    assert list_texts(tmp_path / "a.csv", template="{text} {score}") == ["x 3,5", "y 4.5"]


@pytest.mark.parametrize("column", ["text_column", "author_column", "template", "where"])
def test_column_that_is_used_must_not_be_doubled(tmp_path: Path, column: str) -> None:
    (tmp_path / "a.csv").write_text("text,x,y,x\na,1,2,3\n")
    overrides: dict[str, Any] = {column: {"template": "{text} {x}", "where": 'x == "1"'}.get(column, "x")}
    with pytest.raises(MisuseError, match="the header of .*a.csv has two columns of the same name, 'x'; rename one"):
        list_texts(tmp_path / "a.csv", **overrides)
    assert list_texts(tmp_path / "a.csv", where='y == "2"') == ["a"]


@pytest.mark.parametrize("recipe", [{}, {"invalid_utf8": "replace"}, {"invalid_utf8": "skip"}])
def test_header_in_another_encoding_is_one_line(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "a.csv").write_bytes("id,text,название\n1,строка,имя\n".encode("cp1251"))
    with pytest.raises(
        FolioError,
        match="the header of .*a.csv is not UTF-8: byte 0xed .*; pass the encoding of the file, with --encoding",
    ):
        build_files(tmp_path, tmp_path / "a.csv", **recipe)
    with pytest.raises(
        FolioError,
        match="the header of .*a.csv is not UTF-8: byte 0xed .*; pass the encoding of the file, with --encoding",
    ):
        list(TokenStream(open_files(tmp_path / "a.csv", **recipe), block_size=4))


EMPTY = {
    "a.csv": b"",
    "b.csv": b"\xef\xbb\xbf",
    "c.tsv": b"\r\n\n",
    "d.csv.gz": gzip.compress(b"\n"),
    "e.csv": b"sep=;\n",
}


def test_empty_files_are_counted_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in EMPTY.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FolioError, match=r"no document is left of own: all input files are empty \(5 files\)"):
        build_files(tmp_path, tmp_path)
    with pytest.raises(FolioError, match="all 5 input files of .* are empty; name others"):
        list(TokenStream(open_files(tmp_path), block_size=4))
    with pytest.raises(FolioError, match="the input file .*a.csv is empty; name another"):
        list(TokenStream(open_files(tmp_path / "a.csv"), block_size=4))
    write_csv(tmp_path / "f.csv", [["text"], ["a"], ["b"]])
    capsys.readouterr()
    assert read_texts(build_files(tmp_path, *tmp_path.glob("?.*"))) == ["a", "b"]
    assert "5 of 6 input files have no content" in capsys.readouterr().err


def test_settings_of_dialects_are_stored_only_if_they_are_set() -> None:
    default = Recipe(corpus="x", format="csv").resolved()
    assert not {"delimiter", "escape", "quotes"} & set(default)
    given_settings: dict[str, Any] = {"delimiter": ";", "escape": "\\", "quotes": False}
    assert Recipe(corpus="x", format="csv", **given_settings).resolved() == default | given_settings
    assert (
        Recipe(corpus="x", format="jsonl", **given_settings).resolved() == Recipe(corpus="x", format="jsonl").resolved()
    )


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"delimiter": ";;"}, "delimiter must be one ASCII character other than a quote and a line end, got ';;'"),
        ({"delimiter": ""}, "delimiter must be one ASCII character .*, got ''"),
        ({"delimiter": "\n"}, "delimiter must be one ASCII character .*"),
        ({"delimiter": "é"}, "delimiter must be one ASCII character .*, got 'é'"),
        ({"escape": '"'}, "escape must be one ASCII character other than a quote"),
        ({"escape": ";", "delimiter": ";"}, "delimiter and escape must be different characters, both are ';'"),
    ],
)
def test_wrong_dialects_are_an_error(given_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        load_recipe(None, inputs=("a.csv",), **given_settings)


def test_dialect_of_other_formats_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    changes: list[tuple[str, Any]] = [("delimiter", ";"), ("escape", "\\"), ("quotes", False)]
    for name, value in changes:
        with pytest.raises(MisuseError, match=f"{name} has no effect on jsonl files; leave --{name} out"):
            build_files(tmp_path, tmp_path / "a.jsonl", **{name: value})


def test_options_of_every_command_set_the_dialect(tmp_path: Path, preprocess: Any) -> None:
    (tmp_path / "a.txt").write_text("id:x\ttext\n" + "".join(f'{i}\ta\\"{i}\n' for i in range(20)))
    options = ("--input", "a.txt", "--format", "csv", "--delimiter", r"\t", "--escape", "\\", "--no-quotes")
    built = preprocess("build", *options, "--tokenizer", "byte", "--json")
    assert json.loads(built.stdout)["splits"]["train"]["documents"] == 18
    assert json.loads(preprocess("estimate", *options, "--tokenizer", "byte", "--json").stdout)["documents"] == 20
    assert preprocess("tokenizer", "train", *options, "--tokenizer", "char", "--output", "t").returncode == 0
    stream = open_files(tmp_path / "a.txt", format="csv", delimiter="\t", escape="\\", quotes=False, val_fraction=1e-9)
    documents = read_documents(TokenStream(stream, block_size=9, tail="pad", stream_buffer=0))
    assert documents == [f'a"{i}'.encode() for i in range(20)]
