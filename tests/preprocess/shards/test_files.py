"""Atomic writes of files and directories, JSON, and JSON-lines files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError
from preprocess.shards import files
from preprocess.shards.files import (
    canonical_json,
    open_atomic,
    open_json_lines,
    parse_json,
    read_small_file,
    readable_json,
    replace_directory,
    restore_replaced_directory,
    sha256_bytes,
    sha256_file,
    write_durable,
)
from tests.conftest import assert_one_line
from tests.helpers.memory import measure_peak_bytes


def make_directory(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("exists", [False, True])
def test_replace_directory_renames_new_and_deletes_old(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "target"
    if exists:
        make_directory(target, "old")
    replace_directory(make_directory(tmp_path / "new", "new"), target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"] and (target / "file").read_text() == "new"


def test_replace_directory_restores_old_after_an_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, new = make_directory(tmp_path / "target", "old"), make_directory(tmp_path / "new", "new")
    rename = os.rename

    def fail_for_new(source: Path, destination: Path) -> None:
        if source == new:
            raise KeyboardInterrupt
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_for_new)
    with pytest.raises(KeyboardInterrupt):
        replace_directory(new, target)
    assert (target / "file").read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["new", "target"]


def test_restore_replaced_directory_undoes_the_first_rename(tmp_path: Path) -> None:
    make_directory(tmp_path / ".target.123.replaced", "old")
    restore_replaced_directory(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target/file").read_text() == "old"


def test_restore_replaced_directory_deletes_old_after_the_second_rename(tmp_path: Path) -> None:
    make_directory(tmp_path / ".target.123.replaced", "old")
    make_directory(tmp_path / "target", "new")
    restore_replaced_directory(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target/file").read_text() == "new"


def test_restore_replaced_directory_leaves_other_names_alone(tmp_path: Path) -> None:
    make_directory(tmp_path / ".target.v2.123.replaced", "the old directory of target.v2")
    restore_replaced_directory(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == [".target.v2.123.replaced"]


def test_golden_json_bytes() -> None:
    assert readable_json({"b": "я", "a": 1}) == '{\n  "a": 1,\n  "b": "я"\n}\n'.encode()
    assert canonical_json({"b": "я", "a": [1, 2]}) == '{"a":[1,2],"b":"я"}'.encode()


@pytest.mark.parametrize("data", [b"NaN", b"[Infinity]", b'{"a": -Infinity}', b"", b"{"])
def test_parse_json_rejects_what_is_not_json(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(data)
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}


def test_write_durable_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"a longer text", b"short"):
        write_durable(path, data)
        assert path.read_bytes() == data and sha256_file(path) == sha256_bytes(data)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_open_atomic_names_the_file_if_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error, open_atomic(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` raises it
    assert error.value.filename == str(tmp_path / "a")


def test_open_atomic_keeps_the_old_file_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), open_atomic(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the size of files in a child process")
def test_write_durable_names_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    import resource

    path, limits = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            write_durable(path, b"more than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path)) and list(tmp_path.iterdir()) == []


def parse_step(row: dict[str, Any]) -> int:
    if type(row.get("step")) is not int:
        raise TypeError("it has no step")
    return row["step"]


def read_steps(path: Path, **options: bool) -> list[int]:
    rows = open_json_lines(path, parse_step, row_name="a row of metrics", advice="delete the line", **options)
    return list(rows)


def test_read_json_lines_drops_a_line_without_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_steps(path) == []
    for data, steps in ((b"", []), (b'{"step": 1', []), (b'{"step": 1}\n\n{"step": 2}\n{"step": 3}', [1, 2])):
        path.write_bytes(data)
        assert read_steps(path) == steps


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\0\0\0", ""),
        (b"[1]", r"it is not an object"),
        (b"{}", r"it has no step"),
        (b'{"step": NaN}', "NaN is not a JSON number"),
        (b"[" * 100_000, ""),
    ],
)
def test_read_json_lines_rejects_a_bad_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    for options in ({}, {"drop_bad_last_line": True}):
        with pytest.raises(
            FolioError, match=rf"rows\.jsonl, line 2 is not a row of metrics \(.*{reason}.*; delete"
        ) as e:
            read_steps(path, **options)
        assert_one_line(str(e.value))


def test_read_json_lines_drops_a_bad_last_line_on_request(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n')
    assert read_steps(path, drop_bad_last_line=True) == [1]
    with pytest.raises(FolioError, match="line 2 is not a row of metrics"):
        read_steps(path)


def test_read_json_lines_has_a_limit_for_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}       \n')  # of 12 and 19 bytes
    assert read_steps(path) == [1, 2]
    for long_line in (b"\0" * 50, b'{"step": 3}' + b" " * 30 + b"\n"):
        path.write_bytes(b'{"step": 1}\n' + long_line)
        with pytest.raises(FolioError, match=r"line 2 is not a row of metrics \(it has more than 20 bytes\)"):
            read_steps(path, drop_bad_last_line=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_read_json_lines_does_not_wait_for_a_writer_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(FolioError, match="not a regular file"):
        read_steps(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"1e999", "too large"),
        (b"-1e999", "too large"),
        (b"[NaN]", "not a JSON number"),
        (b"[" * 100_000, "nested"),
        (b'{"a": ["\\ud800"]}', "surrogate"),
        (b'{"\\uDC00": 1}', "surrogate"),
        (b"9" * 5_000, "digits"),
    ],
)
def test_parse_json_rejects_what_no_writer_of_folio_writes(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(data)


def test_parse_json_accepts_pairs_of_surrogates() -> None:
    assert parse_json(b'"\\ud83d\\ude00 \\u00e9"') == "😀 é"


def test_read_small_file_refuses_larger_files_and_what_is_not_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(b"12345")
    assert read_small_file(path, 5) == b"12345"
    with pytest.raises(FolioError, match="has 5 bytes, expected at most 4"):
        read_small_file(path, 4)
    with pytest.raises(FolioError, match="not a regular file"):
        read_small_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_small_file(tmp_path / "missing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_read_small_file_does_not_wait_for_a_writer_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FolioError, match="not a regular file"):
        read_small_file(tmp_path / "pipe")


@pytest.mark.parametrize("value", [b"0,", b"[],", b"{},"])
def test_parse_json_refuses_more_values_than_memory_holds(monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    monkeypatch.setattr(files, "MAX_JSON_VALUES", 10_000)
    assert len(parse_json(b"[" + value * 4_000 + b"0]")) == 4_001
    many = b"[" + value * 1_000_000 + b"0]"

    def parse() -> None:
        with pytest.raises(ValueError, match="it has more than 10,000 values"):
            parse_json(many)

    assert measure_peak_bytes(parse) < 1_000_000


def test_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 30)

    def read() -> None:
        with pytest.raises(FolioError, match="has 1,073,741,824 bytes, expected at most"):
            read_small_file(tmp_path / "sparse")

    assert measure_peak_bytes(read) < 1_000_000


def test_open_json_lines_yields_the_rows_of_the_moment_of_the_call(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    appended, replaced = (open_json_lines(path, parse_step, row_name="a row", advice="") for _ in range(2))
    with open(path, "ab") as file:
        file.write(b'{"step": 3}\n')
    assert list(appended) == [1, 2]
    path.unlink()
    path.write_bytes(b'{"step": 4}\n')
    assert list(replaced) == [1, 2]
