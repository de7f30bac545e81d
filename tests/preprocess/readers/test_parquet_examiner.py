"""The child process that examines the metadata of Parquet files."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import FolioError
from preprocess.readers import input_checks, parquet_examiner
from preprocess.readers.input_checks import InputChecker
from preprocess.readers.parquet_examiner import examine_files, start_examiner
from tests.preprocess.readers.helpers import describe


def write_files(folder: Path, num_files: int) -> list[str]:
    paths = [str(folder / f"{i}.parquet") for i in range(num_files)]
    for path in paths:
        pq.write_table(pa.table({"text": ["a"]}), path, store_schema=False)
    return paths


def damage_schema(path: str) -> None:
    """Change the repetition of the column in the schema, which ends a process that asks for the column's metadata."""
    schema = b"\x15\x0c\x25\x02\x18\x04text"
    data = Path(path).read_bytes()
    assert data.count(schema) == 1
    Path(path).write_bytes(data.replace(schema, b"\x15\x0c\x25\x00" + schema[4:]))


def test_first_file_that_ends_the_examiner_is_found_among_others(tmp_path: Path) -> None:
    paths = write_files(tmp_path, 5)
    Path(paths[0]).write_bytes(b"not Parquet")  # the reader reports it
    Path(paths[2]).unlink()
    for path in (paths[1], paths[4]):
        damage_schema(path)
    reason = "reading its metadata ends the process with SIGABRT"
    assert examine_files(paths, ["text"]) == [None, reason]
    assert examine_files(paths[2:], ["text"]) == [None, None, reason]
    assert examine_files(paths, ["other"]) == [None] * 5  # nothing is read of other columns


def test_examiner_can_be_started_before_it_is_needed(tmp_path: Path) -> None:
    start_examiner()
    start_examiner()
    (child,) = parquet_examiner._started
    assert examine_files(write_files(tmp_path, 1), ["text"]) == [None]
    assert child.returncode == 0 and not parquet_examiner._started


def test_examiner_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho no Python here >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(FolioError, match="^the process that examines Parquet files cannot start: no Python here$"):
        examine_files(write_files(tmp_path, 1), ["text"])


@pytest.mark.parametrize(("work", "expected"), [("bytearray(2 << 30)", "MemoryError"), ("while True: pass", "")])
def test_memory_and_time_of_the_examiner_are_limited(work: str, expected: str) -> None:
    code = f"from preprocess.readers import parquet_examiner as e\ne.MAX_CPU_S = 1\ne._limit_resources()\n{work}"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert expected in child.stderr and child.returncode == (1 if expected else -signal.SIGXCPU)
    if not expected:
        assert parquet_examiner._explain_end(child.returncode) == "reading its metadata takes more than 10 s"


def test_files_of_a_stream_are_examined_in_growing_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_files(tmp_path, 7)
    damage_schema(paths[5])
    _, recipe = describe(Path(paths[0]))
    files = [dataclasses.replace(describe(Path(path))[0], number=i) for i, path in enumerate(paths)]
    groups: list[int] = []

    def examine_and_count(paths: list[str], names: list[str]) -> list[str | None]:
        groups.append(len(paths))
        return examine_files(paths, names)

    monkeypatch.setattr(input_checks, "examine_files", examine_and_count)
    checker = InputChecker(files, recipe)
    for input_file in files[:5]:
        checker.check(input_file)
    for _ in range(2):
        with pytest.raises(
            FolioError, match=r"5.parquet cannot be read as Parquet \(.*\); it is damaged, copy it again"
        ):
            checker.check(files[5])
    checker.check(files[6])
    assert groups == [1, 2, 4, 1]  # the child does not reach the last file of the third group
    groups.clear()
    with pytest.raises(FolioError, match="5.parquet"):
        InputChecker(files, recipe).check_all()
    assert groups == [7]
