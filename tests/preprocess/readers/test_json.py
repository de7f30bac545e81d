"""The JSON lines reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from tests.helpers.file_builds import WORDS, build_files, read_stats, read_texts


@pytest.mark.usefixtures("partition_sizes")
def test_read_jsonl_rejects_malformed_lines_and_keeps_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = [{"text": f"{w} ü \u2028 {i}", "n": i} for i in range(4) for w in WORDS]
    bad = [
        '{"text": "open',
        "[1, 2]",
        '{"text": 5}',
        '{"text": ["a"]}',
        "nonsense",
        '{"text": "a"} trailing',
        "NaN",
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in good]
    for i, line in enumerate(bad):
        lines.insert(i * 7 + 3, line)
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\r\n".join(lines) + "\n\n  \n").encode())
    result = build_files(tmp_path, path)
    assert read_texts(result) == [row["text"] for row in good] and read_stats(result)["documents"]["malformed"] == len(
        bad
    )
    rejected = [json.loads(line) for line in (tmp_path / ".x.work/refused.jsonl").read_text().splitlines()]
    assert [entry["record"].strip() for entry in rejected] == bad
    assert all(entry["source"] == "a.jsonl" and entry["reason"] for entry in rejected)
    data = path.read_bytes()
    for entry in rejected:
        offset = int(entry["place"].removeprefix("byte "))
        assert data[offset:].startswith(entry["record"].encode())
    assert "refused.jsonl" in capsys.readouterr().err


def test_read_jsonl_counts_null_and_missing_text(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": "b"}, {"other": 1}, {"text": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    counts = read_stats(build_files(tmp_path, tmp_path / "a.jsonl"))["documents"]
    assert (counts["kept"], counts["null_text"], counts["empty"]) == (2, 2, 1)


def test_read_jsonl_raises_or_skips_overlong_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in ("one", "x " * 400, "two", "y" * 3000, "three")))
    with pytest.raises(FolioError, match=r"longer than twice max_document_bytes \(500\)"):
        build_files(tmp_path, path, max_document_bytes=500)
    result = build_files(tmp_path, path, max_document_bytes=500, oversized="skip")
    first, *parts, second, third = read_texts(result)
    assert (first, second, third) == ("one", "two", "three") and "".join(parts) == "x " * 400
    assert read_stats(result)["documents"]["oversized"] == 1


def test_the_last_value_of_a_doubled_key_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"text": "first {word}", "text": "{word}"}}\n' for word in WORDS))
    assert sorted(read_texts(build_files(tmp_path, path))) == sorted(WORDS)


def test_read_jsonl_ignores_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "one"}\n{"text": "two"}\n')
    assert read_texts(build_files(tmp_path, tmp_path / "a.jsonl")) == ["one", "two"]


@pytest.mark.parametrize("value", ["9007199254740993", "123456789012345678901234567890"])
def test_read_jsonl_with_numbers_beyond_float_precision(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "a", "id": {value}}}\n{{"text": "b", "id": 2}}\n{{"text": "c", "id": 3}}'
    )
    assert read_texts(build_files(tmp_path, tmp_path / "a.jsonl", where="id > 2")) == ["a", "c"]
    texts = read_texts(build_files(tmp_path, tmp_path / "a.jsonl", template="{id}"))
    # A number that is only readable as a float has lost digits, so its record is malformed.
    assert texts == ([value] if len(value) < 20 else []) + ["2", "3"]


def test_check_jsonl_rejects_a_condition_with_several_types(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "id": 1}')
    with pytest.raises(MisuseError, match="compares id with values of several types"):
        build_files(tmp_path, tmp_path / "a.jsonl", where='id == 1 or id == "a"')
