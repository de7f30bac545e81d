"""JSON that is not in lines: arrays, arrays in a field, and values one after another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.readers.json_layout import ARRAY, VALUES, Layout
from preprocess.readers.json_values import PIECE_BYTES, read_json_values
from preprocess.readers.records import Rejects
from tests.preprocess.readers.helpers import RejectsInMemory, describe, list_texts

TEXTS = st.text(st.sampled_from('ab"\\{}[],: \n\té中😀\ud7ff\u2028'), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES_INSIDE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
RECORDS = st.lists(st.dictionaries(TEXTS, VALUES_INSIDE, max_size=4), max_size=6)
SMALL = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


@st.composite
def written_json(draw: Any) -> tuple[list[Any], bytes, Layout]:
    """Draw records, a file that contains them, and its layout."""
    records = draw(RECORDS)
    style = {"indent": draw(st.sampled_from([None, 0, 2])), "ensure_ascii": draw(st.booleans())}
    kind = draw(st.sampled_from(["array", "field", "nested field", "values"]))
    if kind == "array":
        return records, json.dumps(records, **style).encode(), ARRAY
    if kind == "values":
        separator = draw(st.sampled_from(["", " ", "\n", ",\n", "\r\n\r\n"]))
        return records, separator.join(json.dumps(record, **style) for record in records).encode(), VALUES
    others = draw(st.dictionaries(TEXTS.filter(lambda name: name != 'da"ta'), VALUES_INSIDE, max_size=3))
    value: Any = records if kind == "field" else {**others, "x": records}
    fields = [*others.items()]
    fields.insert(draw(st.integers(0, len(fields))), ('da"ta', value))
    path = ('da"ta',) if kind == "field" else ('da"ta', "x")
    return records, json.dumps(dict(fields), **style).encode(), Layout(is_array=True, path=path)


def cut(data: bytes, layout: Layout, num_bytes: int = 1 << 20, **overrides: Any) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of each record that is found in `data`, which arrives in blocks of `num_bytes`."""
    input_file, recipe = describe(Path(__file__), format="jsonl", **overrides)
    blocks = (data[start : start + num_bytes] for start in range(0, len(data), num_bytes))
    for block in read_json_values(blocks, input_file, layout, recipe, Rejects(None)):
        assert block.spans
        for start, end in block.spans:
            yield block.offset + start, bytes(block.data[start:end])


@SMALL
@example(([{"a": "\\"}, {"b": '"'}], b'[{"a":"\\\\"},{"b":"\\""}]', ARRAY), 1, 3)
@given(written_json(), st.integers(1, 30), st.integers(2, 40))
def test_records_are_those_of_json_loads(
    monkeypatch: pytest.MonkeyPatch, written: tuple[list[Any], bytes, Layout], block_bytes: int, window_bytes: int
) -> None:
    records, data, layout = written
    monkeypatch.setattr("preprocess.readers.json_structure.WINDOW_BYTES", window_bytes)
    found = list(cut(data, layout, block_bytes))
    assert [json.loads(record) for _, record in found] == records
    assert all(data[offset:].startswith(record) for offset, record in found)


@SMALL
@given(written_json(), st.integers(1, 30), st.data())
def test_a_file_that_is_cut_short_is_an_error_or_has_fewer_values(
    written: tuple[list[Any], bytes, Layout], block_bytes: int, data: st.DataObject
) -> None:
    records, content, layout = written
    content = content[: data.draw(st.integers(0, max(len(content) - 1, 0)))]
    try:
        found = [json.loads(record) for _, record in cut(content, layout, block_bytes)]
    except FolioError as e:
        assert "cut short" in str(e) or "has no array" in str(e)
    else:
        assert layout is VALUES or not content
        assert found == records[: len(found)]


ROWS = [{"text": f'row {i} "[{{\\', "author": {"name": f"a{i % 3}"}, "tags": ["x", i]} for i in range(40)]


@pytest.mark.parametrize("num_bytes", [3, 1 << 20])
def test_the_layout_is_found_from_the_first_bytes(tmp_path: Path, num_bytes: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", num_bytes)
    files = {
        "lines": "\n".join(map(json.dumps, ROWS)),
        "first line malformed": "\n".join(["{bad", *map(json.dumps, ROWS)]),
        "array": json.dumps(ROWS),
        "indented array": "\ufeff\n" + json.dumps(ROWS, indent=2) + "\n",
        "a line for each element": "[" + ",\n".join(map(json.dumps, ROWS)) + "\n]",
        "comma after the last element": "[" + "".join(json.dumps(row) + ",\n" for row in ROWS) + "]",
        "arrays one after another": json.dumps(ROWS[:9]) + "\n" + json.dumps(ROWS[9:]),
        "field": json.dumps({"version": "[{", "data": ROWS, "numbers": [1, 2], "none": []}),
        "indented field": json.dumps({"about": {"rows": []}, "data": ROWS}, indent=1),
        "values": "".join(map(json.dumps, ROWS)),
        "indented values": "\n".join(json.dumps(row, indent=4) for row in ROWS),
        "values and commas": ",\n".join(map(json.dumps, ROWS)) + ",\n",
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content, encoding="utf-8")
        rejects = RejectsInMemory()
        texts = list_texts(path, rejects, author_column="author.name")
        assert texts == [row["text"] for row in ROWS], name
        assert len(rejects.malformed) == (name == "first line malformed"), name


def test_a_single_object_is_a_record_if_it_has_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps({"text": "one", "parts": [{"text": "two"}, {"text": "three"}]}, indent=indent))
        assert list_texts(path) == ["one"]
        assert list_texts(path, json_field="parts") == ["two", "three"]


def test_several_arrays_of_objects_are_refused_until_one_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"x": [1, {}], "train": [{"text": "a"}], "in.side": [{"text": "b"}], "c": {"d": ROWS}}))
    message = r"a.json has several arrays of objects, in the fields train, in.side; choose one with --json-field"
    with pytest.raises(MisuseError, match=message):
        list_texts(path)
    assert list_texts(path, json_field="train") == ["a"] and list_texts(path, json_field="in.side") == ["b"]
    assert list_texts(path, json_field="c.d") == [row["text"] for row in ROWS]
    with pytest.raises(MisuseError, match="has no array in the field 'c'; choose another with --json-field"):
        list_texts(path, json_field="c")
    monkeypatch.setattr("preprocess.readers.json_layout.HEAD_BYTES", 50)  # the second array is not seen at first
    monkeypatch.setattr("preprocess.readers.json.HEAD_BYTES", 50)
    monkeypatch.setattr("preprocess.readers.json_columns.HEAD_BYTES", 50)
    with pytest.raises(MisuseError, match=message):
        list_texts(path)


def test_long_lines_that_may_be_an_array_are_not_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"comments": [{"text": "a" * 50}], "text": f"post {i}"}) + "\n" for i in (0, 1)))
    assert list_texts(path) == ["post 0", "post 1"]
    for module in ("json", "json_layout", "json_columns"):
        monkeypatch.setattr(f"preprocess.readers.{module}.HEAD_BYTES", 50)
    message = "has an object at byte 97, after one with an array of objects in its field comments, so it is not clear"
    with pytest.raises(MisuseError, match=message):
        list_texts(path)
    assert list_texts(path, json_field="comments") == ["a" * 50] * 2


def test_a_malformed_element_does_not_affect_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    elements = [b'{"text": "a"}', b'{"text": }', b"7", b'"x, y"', b"[1, [2]]", b'{"text": "\xff"}', b'{"text": "b"}']
    path.write_bytes(b"[" + b" ,\n ".join([*elements, b'{"text": "c"} {"text": "d"}', b'{"text":"e"}']) + b" ] \n")
    rejects = RejectsInMemory()
    assert list_texts(path, rejects, invalid_utf8="skip") == ["a", "b", "e"]
    assert [record.strip() for *_, record in rejects.malformed] == [*elements[1:5], b'{"text": "c"} {"text": "d"}']
    data = path.read_bytes()
    for location, _, record in rejects.malformed:
        assert data[int(location.removeprefix("byte ")) :].startswith(record)
    assert [reason for _, reason, _ in rejects.malformed][1] == "expected a JSON object, got number"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"text": "a"}, {"text": "b"}',
            "ends within an element of the array, which begins at byte 16; it is cut short",
        ),
        ('[{"text": "a"}, {"text": "b}]', "ends within an element of the array, which begins at byte 16"),
        ('[{"text": "a"}\n', "ends within an element"),
        ('[{"text": "a"},\n{"text": "b"}\n', "ends within an element of the array, which begins at byte 16"),
        ('[{"text": "a"}] x', "something at byte 16, after the end of its array or object"),
        ('[{"text": "a"}]]', r"an unexpected \] at byte 15"),
        ('[{"text": "a"}] {"text": "b"}', "something at byte 16"),
        ('[{"text": "a"}}', r"an unexpected } at byte 14"),
        ('{"data": [{"text": "a"}]', "ends within the value that begins at byte 0"),
        ('{"data": [{"text": "a"}], "x": "', "ends within the value that begins at byte 0"),
        ('{"text": "a"}{"text": "b"', "ends within the value that begins at byte 13"),
        ('{"text": "a"}}{"text": "b"}', "an unexpected } at byte 13"),
    ],
)
def test_a_file_that_is_not_json_is_refused_for_the_true_reason(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(FolioError, match=message):
        list_texts(path)


def test_records_that_are_too_long_are_an_error_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    rows = [{"text": text} for text in ("one", "x" * 900, "two", "y" * 600, "three")]
    for content in (json.dumps(rows), "".join(json.dumps(row, indent=1) for row in rows)):
        path.write_text(content)
        for num_bytes in (10, 1 << 20):
            monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", num_bytes)
            rejects = Rejects(None)
            assert list_texts(path, rejects, max_document_bytes=300, oversized="skip") == ["one", "two", "three"]
            assert rejects.counts["oversized"] == 2
            with pytest.raises(FolioError, match=r"the record at byte \d\d is longer than twice max_document_bytes"):
                list_texts(path, max_document_bytes=300)


def test_many_short_records_are_passed_on_in_pieces() -> None:
    data = json.dumps([{"a": 1}] * 600_000).encode()
    input_file, recipe = describe(Path(__file__), format="jsonl")
    blocks = list(read_json_values(iter([data]), input_file, ARRAY, recipe, Rejects(None)))
    assert sum(len(block.spans or ()) for block in blocks) == 600_000
    assert len(blocks) > 2 and max(len(block.data) for block in blocks) < PIECE_BYTES + 20
