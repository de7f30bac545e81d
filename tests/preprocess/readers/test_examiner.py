"""The child process that examines Parquet and Arrow files."""

from __future__ import annotations

import mmap
import random
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import FolioError
from preprocess.readers import examiner, input_checks
from preprocess.readers.examiner import examine_files, start_examiner
from preprocess.readers.input_checks import InputChecker
from tests.conftest import assert_one_line
from tests.preprocess.readers.helpers import describe


def write_files(folder: Path, num_files: int) -> list[str]:
    paths = [str(folder / f"{i}.parquet") for i in range(num_files)]
    for path in paths:
        pq.write_table(pa.table({"text": ["a"]}), path, store_schema=False)
    return paths


def examine_parquet(paths: list[str], name: str = "text") -> list[str | None]:
    return examine_files([(path, "parquet") for path in paths], [name])


def write_arrow(path: Path, text: pa.Array, *, is_stream: bool = False, compression: str | None = "zstd") -> None:
    """Write a record batch with the column `text`, and one with an empty text."""
    batch = pa.record_batch([text], ["text"])
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new(str(path), batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
        writer.write_batch(pa.record_batch([pa.array([""], text.type)], ["text"]))


def make_zeros(num_bytes: int) -> pa.Array:
    """Return a text of `num_bytes` zeros, whose pages take no memory, since nothing is written to them."""
    zeros = pa.py_buffer(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    return pa.LargeStringArray.from_buffers(1, pa.array([0, num_bytes], pa.int64()).buffers()[1], zeros)


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
    assert examine_parquet(paths) == [None, reason]
    assert examine_parquet(paths[2:]) == [None, None, reason]
    assert examine_parquet(paths, "other") == [None] * 5  # nothing is read of other columns


def test_examiner_can_be_started_before_it_is_needed(tmp_path: Path) -> None:
    start_examiner()
    start_examiner()
    (child,) = examiner._started
    assert examine_parquet(write_files(tmp_path, 1)) == [None]
    assert child.returncode == 0 and not examiner._started


def test_examiner_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho no Python here >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(
        FolioError, match="^the process that examines Parquet and Arrow files cannot start: no Python here$"
    ):
        examine_parquet(write_files(tmp_path, 1))


@pytest.mark.parametrize(("work", "expected"), [("bytearray(2 << 30)", "MemoryError"), ("while True: pass", "")])
def test_memory_and_time_of_the_examiner_are_limited(work: str, expected: str) -> None:
    code = f"from preprocess.readers import examiner as e\ne.limit_resources(e.MAX_MEMORY_BYTES, 1, 60)\n{work}"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert expected in child.stderr and child.returncode == (1 if expected else -signal.SIGXCPU)
    if not expected:
        reason = examiner._explain_end(child.returncode, "a.parquet", "parquet")
        assert reason == "reading its metadata takes more than 10 s"


def test_files_of_a_stream_are_examined_in_growing_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_files(tmp_path, 7)
    damage_schema(paths[5])
    _, recipe = describe(Path(paths[0]))
    files = [describe(Path(path))[0]._replace(number=i) for i, path in enumerate(paths)]
    groups: list[int] = []

    def examine_and_count(files: list[tuple[str, str]], names: list[str]) -> list[str | None]:
        groups.append(len(files))
        return examine_files(files, names)

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


@pytest.mark.parametrize("is_stream", [False, True])
def test_compressed_arrow_batch_that_needs_too_much_memory_is_refused(tmp_path: Path, is_stream: bool) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, make_zeros((1 << 30) + 1), is_stream=is_stream)
    assert path.stat().st_size < 1_000_000
    input_file, recipe = describe(path)
    message = (
        r"a.arrow cannot be read as Arrow IPC \(reading its record batches takes more than 400 MB of memory\); it is"
    )
    with pytest.raises(FolioError, match=message) as error:
        InputChecker([input_file], recipe).check_all()
    assert_one_line(str(error.value))


def test_only_the_columns_of_arrow_files_that_are_read_are_examined(tmp_path: Path) -> None:
    batch = pa.record_batch([pa.array(["a"]), make_zeros((1 << 30) + 1)], ["text", "other"])
    with pa.ipc.new_file(
        str(tmp_path / "a.arrow"), batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_batch(batch)
    files = [(str(tmp_path / "a.arrow"), "arrow")]
    assert examine_files(files, ["text"]) == [None]
    assert examine_files(files, ["other"]) == ["reading its record batches takes more than 400 MB of memory"]


def test_memory_of_an_arrow_batch_is_free_when_the_next_one_is_examined(tmp_path: Path) -> None:
    batch = pa.record_batch([make_zeros(200 << 20)], ["text"])
    with pa.ipc.new_file(
        str(tmp_path / "a.arrow"), batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        for _ in range(2):
            writer.write_batch(batch)
    assert examine_files([(str(tmp_path / "a.arrow"), "arrow")], ["text"]) == [None]


@pytest.mark.parametrize("is_stream", [False, True])
def test_damaged_arrow_files_never_end_this_process(tmp_path: Path, is_stream: bool) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, pa.array([f"text {i}" for i in range(100)]), is_stream=is_stream)
    whole, source, paths = path.read_bytes(), random.Random(2), []
    for i in range(100):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[source.randrange(8, len(damaged))] ^= source.randrange(1, 256)
        paths.append(str(tmp_path / f"{i}.arrow"))
        Path(paths[-1]).write_bytes(damaged)
    while paths:  # the child ends with each file that crashes it
        reasons = examine_files([(p, "arrow") for p in paths], ["text"])
        assert 0 < len(reasons) <= len(paths)
        assert all(reason is None or reason.startswith("reading its record batches ") for reason in reasons)
        paths = paths[len(reasons) :]


def test_large_arrow_files_of_a_stream_are_examined_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_checks, "MAX_ARROW_BYTES_AHEAD", 1)
    for i in range(3):
        write_arrow(tmp_path / f"{i}.arrow", pa.array(["a"]))
    _, recipe = describe(tmp_path / "0.arrow")
    files = [describe(tmp_path / f"{i}.arrow")[0]._replace(number=i) for i in range(3)]
    groups: list[int] = []

    def examine_and_count(group: list[tuple[str, str]], names: list[str]) -> list[str | None]:
        groups.append(len(group))
        return examine_files(group, names)

    monkeypatch.setattr(input_checks, "examine_files", examine_and_count)
    checker = InputChecker(files, recipe)
    for input_file in files:
        checker.check(input_file)
    assert groups == [1, 1, 1]
    groups.clear()
    InputChecker(files, recipe).check_all()
    assert groups == [3]
