"""Single records of JSON: nested values, NaN, halves of surrogate pairs, and columns that appear late."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.cli.main import main
from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.compressions import import_zstd
from preprocess.readers import json_columns
from preprocess.readers.input_checks import InputChecker
from preprocess.readers.json_records import replace_lone_surrogates
from preprocess.readers.records import Rejects
from preprocess.stream import TokenStream
from tests.helpers.file_builds import build_files, read_stats, read_texts
from tests.preprocess.readers.helpers import RejectsInMemory, describe, list_texts
from tests.preprocess.stream.helpers import open_files, read_documents

NESTED = [
    {"meta": {"lang": lang, "who": {"name": f"a{i}"}}, "meta.n": i, "body": {"text": f"text {i}", "title": "T"}}
    for i, lang in enumerate(["en", "ru"] * 10)
]


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_dots_lead_into_nested_values(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [*NESTED, {"meta": "en", "body": {"text": "no object"}}, {"body": None, "meta": {"lang": "en"}}])
    where = 'meta.lang == "en" and meta.n >= 4'
    result = build_files(tmp_path, path, text_column="body.text", where=where, author_column="meta.who.name")
    assert read_texts(result) == [f"text {i}" for i in range(4, 20, 2)]
    assert read_stats(result)["authors"]["author"]["documents"] == 8
    result = build_files(tmp_path, path, template="{body.title}: {body.text}", where="`meta.n` < 2")
    assert read_texts(result) == ["T: text 0", "T: text 1"]


def test_a_column_with_a_dot_in_its_name_takes_precedence(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [{"a.b": "exact", "a": {"b": "nested"}}, {"a": {"b": "nested"}}])
    assert list_texts(tmp_path / "a.jsonl", text_column="a.b") == ["exact", "nested"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["a", "b"], "text must be text, got array of strings; join its elements to one text before"),
        ([], "text must be text, got array; join its elements to one text before"),
        ({"n": 1, "inner": "x"}, "text must be text, got object; choose a value in it, such as text.inner"),
        (
            {"0": "a", "1": "b"},
            "text must be text, got object with a row in each key, as pandas writes it by default; "
            "write it with to_json(orient='records')",
        ),
        (5, "text must be text, got number; --template '{text}' writes it as text"),
    ],
)
def test_a_value_that_is_not_text_is_rejected_with_advice(tmp_path: Path, value: Any, reason: str) -> None:
    write_lines(tmp_path / "a.jsonl", [{"text": value}, {"text": "b"}])
    rejects = RejectsInMemory()
    assert list_texts(tmp_path / "a.jsonl", rejects) == ["b"] and rejects.malformed[0][1] == reason


def test_records_with_nan_and_infinity_are_read(tmp_path: Path) -> None:
    rows = [{"text": "a", "x": math.nan}, {"text": "b", "x": math.inf}, {"text": "c", "x": -math.inf, "n": 10**20},
            {"text": math.nan, "x": 1}, {"text": "é\ud83d\ude00", "x": 5}]  # fmt: skip
    write_lines(tmp_path / "a.jsonl", rows)
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write('{"text": "d", "x": 1e999}\n{"text": NaN "x"}\n{"text": nan}\n')
    texts = ["a", "b", "c", "é😀", "d"]
    result = build_files(tmp_path, tmp_path / "a.jsonl")
    assert read_texts(result) == texts
    counts = read_stats(result)["documents"]
    assert counts["null_text"] == 1 and counts["malformed"] == 2
    assert read_texts(build_files(tmp_path, tmp_path / "a.jsonl", where="x > 2")) == ["b", "é😀", "d"]
    assert list_texts(tmp_path / "a.jsonl", where="x == null") == ["a"]
    result = build_files(tmp_path, tmp_path / "a.jsonl", template="{text} {x}", where="x != 5")
    assert read_texts(result) == ["b Infinity", "c -Infinity", "d Infinity"]


@pytest.mark.parametrize("long_bytes", [8 << 20, 20])
def test_halves_of_surrogate_pairs_follow_the_rule_for_invalid_utf8(
    tmp_path: Path, long_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.readers.json.LONG_LINE_BYTES", long_bytes)
    monkeypatch.setattr("preprocess.readers.long_json.LONG_STRING_BYTES", 30)
    monkeypatch.setattr("preprocess.readers.long_json.SLICE_BYTES", 13)
    lines = [
        rb'{"text": "whole \ud83d\ude00 pair"}', rb'{"text": "a \ud83d high \\ud800 escaped backslash half"}',
        rb'{"text": "low \uDC00\ud83d\ude00 half", "n": NaN}', b'{"text": "both \\ud800 and \xff, and some more text"}',
        rb'{"text": "x", "unused": "\udfff"}', rb'{"text": "malformed \ud800" "x"}', rb'{"text": "good"}',
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    message = r"a.jsonl has half of a surrogate pair, \\ud83d, at offset 48, which is not text; pass --invalid-utf8"
    with pytest.raises(FolioError, match=message):
        list_texts(path)
    rejects = Rejects(None)
    assert list_texts(path, rejects, invalid_utf8="skip") == ["whole 😀 pair", "good"]
    assert rejects.counts == {"invalid_utf8": 5}
    rejects = Rejects(None)
    assert list_texts(path, rejects, invalid_utf8="replace") == [
        "whole 😀 pair", "a \ufffd high \\ud800 escaped backslash half", "low \ufffd😀 half",
        "both \ufffd and \ufffd, and some more text", "x", "good",
    ]  # fmt: skip
    assert rejects.counts == {"invalid_utf8": 5, "malformed": 1}


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.sampled_from(["\ud800", "\udbff", "\udc00", "\udfff", "a", "\\", '"', "u", "d83d"]), max_size=12))
def test_replace_lone_surrogates_changes_what_utf_16_does_not_have(units: list[str]) -> None:
    text = "".join(units)
    data = json.dumps(text).encode()
    replaced = replace_lone_surrogates(data)
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert orjson.loads(data if replaced is None else replaced[0]) == expected
    assert (replaced is None) == ("\ufffd" not in expected)
    if replaced is not None:
        first = replaced[1]
        assert data[first : first + 2] == b"\\u" and replaced[0][first : first + 6] == rb"\ufffd"
        assert replaced[0][:first] == data[:first]


def test_columns_that_appear_late_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("json", "json_layout", "json_columns"):
        monkeypatch.setattr(f"preprocess.readers.{module}.HEAD_BYTES", 200)
    rows: list[dict[str, Any]] = [{"other": f"row {i}"} for i in range(50)]
    rows += [{"text": "found", "кто": {"имя": "Anna"}, "score": 1}, {"text": "two", "other": 'text" who'}]
    write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.jsonl", "b.json", "c.jsonl.gz"):
        texts = list_texts(tmp_path / name, author_column="кто.имя", where="score == 1")
        assert texts == ["found"]
        for settings_, column in (({"text_column": "texts"}, "texts"), ({"where": "scores == 1"}, "scores"),
                                  ({"author_column": "кто.возраст"}, "кто.возраст")):  # fmt: skip
            with pytest.raises(MisuseError, match=f"{name} has no column '{column}', it has other"):
                list_texts(tmp_path / name, **settings_)


def test_columns_are_found_in_long_records_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.readers.json_columns.LONG_LINE_BYTES", 1 << 16)
    monkeypatch.setattr("preprocess.readers.long_json.MAX_OBJECT_BYTES", 1 << 20)
    parsed: list[int] = []
    parse = json_columns.parse_object
    monkeypatch.setattr(json_columns, "parse_object", lambda data: parsed.append(len(data)) or parse(data))
    rows: list[Any] = [{"text": "a"}, {"text": "b", "n": 1, "lists": [[]] * 100_000}]
    rows += [{"text": "c\xff" * 100_000, "who": "Anna"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(lines.encode("latin-1"))
    input_file, recipe = describe(tmp_path / "a.jsonl", invalid_utf8="replace")
    assert json_columns.find_columns(input_file, {"who", "n"}, recipe) == {"who"}
    assert max(parsed) < 1_000


def test_a_column_of_metadata_may_be_missing_in_some_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [{"text": "a"}])
    write_lines(folder / "b.jsonl", [{"text": "b", "who": "Anna"}])
    write_lines(folder / "c.jsonl", [{"text": "c"}])
    result = build_files(tmp_path, folder, author_column="who")
    assert read_texts(result) == ["a", "b", "c"]
    with pytest.raises(MisuseError, match="a.jsonl has no column 'whom', it has text; choose another"):
        build_files(tmp_path, folder, author_column="whom")
    write_lines(folder / "c.jsonl", [{"body": "c", "who": "Anna"}])
    with pytest.raises(MisuseError, match="c.jsonl has no column 'text', it has body, who; choose another"):
        build_files(tmp_path, folder, author_column="who")


def test_files_are_searched_for_a_column_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    find = json_columns.find_columns
    monkeypatch.setattr(
        json_columns, "find_columns", lambda file, *args: searched.append(file.name) or find(file, *args)
    )
    files = []
    for number in range(6):
        write_lines(tmp_path / f"{number}.jsonl", [{"text": "a", **({"who": "x"} if number == 3 else {})}])
        input_file, recipe = describe(tmp_path / f"{number}.jsonl", author_column="who")
        files.append(input_file)
    files = [file._replace(number=number) for number, file in enumerate(files)]
    InputChecker(files, recipe).check_all()
    assert searched == ["1.jsonl", "2.jsonl", "3.jsonl"]


COMPRESSIONS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": import_zstd().compress
}  # fmt: skip
TEXTS = st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=9)
TABLES = st.lists(st.fixed_dictionaries({"text": TEXTS, "more": st.fixed_dictionaries({"who": TEXTS})}), max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(TABLES, st.booleans(), st.sampled_from([None, 0, 3]), st.sampled_from(list(COMPRESSIONS)))
def test_every_layout_and_compression_gives_the_same_documents(
    tmp_path: Path, rows: list[dict[str, Any]], is_ascii: bool, indent: int | None, suffix: str
) -> None:
    def write(value: Any, indent: int | None = indent) -> str:
        return json.dumps(value, ensure_ascii=is_ascii, indent=indent)

    layouts = {
        "lines": "".join(write(row, None) + "\n" for row in rows),
        "array": write(rows),
        "field": write({"about": {"text": "no record"}, "records": rows, "end": [1, "{"]}),
        "values": "\n".join(map(write, rows)),
    }
    for name, content in layouts.items():
        path = tmp_path / f"{name}.json{suffix}"
        path.write_bytes(COMPRESSIONS[suffix](content.encode()))
        texts = list_texts(path, json_field="records" if name == "field" else None)
        assert texts == [row["text"] for row in rows if row["text"] is not None], name
        texts = list_texts(path, template="{text}{more.who}", json_field="records" if name == "field" else None)
        assert texts == [row["text"] + row["more"]["who"] for row in rows if row["text"] and row["more"]["who"]], name


def test_every_command_reads_json_of_any_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"body": {"text": f"text {i}"}, "n": math.nan if i % 2 else i} for i in range(20)]
    (tmp_path / "a.json").write_text(json.dumps({"x": {"y": rows}}, indent=2))
    options = ["--input", "a.json", "--json-field", "x.y", "--text-column", "body.text", "--where", "n >= 4"]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, [*arguments, *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    built = json.loads(run("build", "--tokenizer", "byte", "--json"))
    assert sum(split["documents"] for split in built["splits"].values()) == 8
    assert json.loads(run("estimate", "--tokenizer", "byte", "--json"))["documents"] == 8
    run("tokenizer", "train", "--tokenizer", "char", "--output", "t")
    assert any((tmp_path / "t").iterdir())
    stream = open_files(
        tmp_path / "a.json", json_field="x.y", text_column="body.text", where="n >= 4", val_fraction=1e-9
    )
    documents = read_documents(TokenStream(stream, block_size=9, tail="pad", stream_buffer=0))
    assert documents == [f"text {i}".encode() for i in range(4, 20, 2)]


def test_json_field_has_no_effect_on_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\nb\n")
    with pytest.raises(MisuseError, match="json_field has no effect on csv files; leave --json-field out"):
        build_files(tmp_path, tmp_path / "a.csv", json_field="data")
    with pytest.raises(MisuseError, match="json_field must not be empty"):
        build_files(tmp_path, tmp_path / "a.csv", json_field="")
