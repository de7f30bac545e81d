"""Lines of JSON that are too long to be parsed at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from preprocess.readers.long_json import LongStrings
from tests.helpers.file_builds import build_files, read_stats, read_texts
from tests.helpers.memory import measure_peak_bytes

CONTENTS = st.lists(
    st.sampled_from(["a", " ", "{", ",", "é", "中", "😀", r"\n", r"\\", r"\"", r"\u00e9", r"\ud83d\ude00", r"\\\\\\"]),
    max_size=60,
).map("".join)
BROKEN_CONTENTS = st.text(["a", "\\", '"', "u", "1", "d", "8", "c", "\t", "é"], max_size=40)
SMALL = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make strings of twelve bytes long, and slices as short as possible."""
    monkeypatch.setattr("preprocess.readers.long_json.LONG_STRING_BYTES", 12)
    monkeypatch.setattr("preprocess.readers.long_json.SLICE_BYTES", 13)


def parse(line: bytes) -> str | None:
    """Return `text` of a line as the long strings give it, or None if the line is rejected."""
    strings = LongStrings(line)
    try:
        record = orjson.loads(strings.shortened_line)
    except orjson.JSONDecodeError:
        return None
    if strings.find_error() is not None or not isinstance(record, dict):
        return None
    text: str = strings.make_array((record["text"],), pa.large_string())[0].as_py()
    return text


@pytest.mark.usefixtures("small_strings")
@SMALL
@example(r"\ud83d\ude00" * 4, "")
@example("\\\\" * 20, r"\"" * 9)
@given(CONTENTS, CONTENTS)
def test_long_strings_are_decoded_as_by_orjson(text: str, other: str) -> None:
    line = f'{{"other": ["{other}", {{"{other}": 1}}], "text": "{text}"}}'.encode()
    assert parse(line) == orjson.loads(line)["text"]


@pytest.mark.usefixtures("small_strings")
@SMALL
@given(BROKEN_CONTENTS, BROKEN_CONTENTS)
def test_a_line_is_rejected_if_orjson_rejects_it(text: str, other: str) -> None:
    line = f'{{"other": "{other}", "text": "{text}"}}'.encode()
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        assert parse(line) is None
    else:
        assert parse(line) == record["text"]


def test_a_file_with_long_lines_gives_the_documents_of_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f'{i} \n"é😀' * (1 + i % 3 * 20), "n": i, "author": f"a{i}"} for i in range(12)]
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    lines.insert(4, '{"text": "' + "x" * 200 + r'\q"}')
    lines.insert(5, "[" * 300)
    (tmp_path / "a.jsonl").write_bytes("\n".join(["\ufeff" + lines[0], *lines[1:]]).encode())
    builds = []
    for name, long_bytes in (("short", 1 << 20), ("long", 100)):
        monkeypatch.setattr("preprocess.readers.json.LONG_LINE_BYTES", long_bytes)
        monkeypatch.setattr("preprocess.readers.long_json.LONG_STRING_BYTES", 30)
        monkeypatch.setattr("preprocess.readers.long_json.SLICE_BYTES", 16)
        result = build_files(tmp_path, tmp_path / "a.jsonl", author_column="author", where="n < 9", name=name)
        rejected = [json.loads(line)["place"] for line in (tmp_path / f".{name}.work/refused.jsonl").open()]
        builds.append((result.build_id, read_texts(result), read_stats(result)["documents"], rejected))
    assert builds[0] == builds[1] and builds[0][2]["malformed"] == 2 and len(builds[0][1]) == 9


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (b"[]," * 2_200_000, "it has too many values for memory"),
        (b'{"a":0},' * 500_000, "it has too many values for memory"),
        (b'"%s",' % ("\U0001f600".encode() + b"a" * 900) * 40_000, "its short values have more than 33,554,432 bytes"),
        (b'"%s",' % ("\U0001f600".encode() + b"a" * 1_100) * 40_000, None),
        (b"12345," * 3_000_000, None),
    ],
    ids=["arrays", "objects", "short strings", "long strings", "numbers"],
)
def test_a_line_with_too_many_values_is_rejected(values: bytes, reason: str | None) -> None:
    strings = LongStrings(b'{"text": "a", "x": [%b1]}' % values)
    assert strings.find_error() == reason


def test_parsing_a_line_of_many_strings_needs_a_few_times_its_size() -> None:
    line = b'{"text": "a", "x": [%b1]}' % (b'"%s",' % ("\U0001f600".encode() + b"a" * 20_000) * 1_000)
    assert measure_peak_bytes(lambda: parse(line)) < 2 * len(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "' + rb"\n\"\\" * 700_000 + b'"}',
        b'{"text": "' + rb"\ud83d\ude00" * 300_000 + b'"}',
        b"[" * 4_000_000,
        b'{"text": "' + b"\\" * 4_000_000,
        b'{"text": "a", "x": [' + b'"b",' * 1_000_000 + b"1]}",
    ],
    ids=["escapes", "surrogates", "brackets", "backslashes", "strings"],
)
def test_four_megabytes_of_an_unusual_line_take_less_than_half_a_second(line: bytes) -> None:
    begin = time.process_time()
    parse(line)
    assert time.process_time() - begin < 0.5
