"""Compressed files, and files that change while they are read."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
import lzma
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from preprocess.errors import FolioError
from preprocess.inputs.compressions import DecompressedStream
from tests.helpers.file_builds import WORDS, build_files, read_texts


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_of_several_frames_are_read_and_truncated_ones_raise(tmp_path: Path, suffix: str) -> None:
    compress = gzip.compress if suffix == ".gz" else compress_zstd
    rows = [
        json.dumps({"text": f"{w} {i} ".ljust(60, str(i % 10))}).encode() + b"\n" for i in range(500) for w in WORDS
    ]
    half = len(rows) // 2
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b"".join(rows[:half])) + compress(b"".join(rows[half:])))
    assert read_texts(build_files(tmp_path, path)) == [json.loads(row)["text"] for row in rows]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 20])
    with pytest.raises(FolioError, match=rf"a.jsonl{suffix} cannot be read as a .* file .it ends too early.* copy it"):
        build_files(tmp_path, path)
    path.write_bytes(b"\xff" + whole)
    with pytest.raises(FolioError, match=f"is not a compressed file, although its name ends in {suffix}; copy it"):
        build_files(tmp_path, path)


@pytest.mark.parametrize("compression", ["gzip", "zstd", "bzip2", "xz"])
def test_a_million_bytes_of_short_streams_are_decompressed_in_linear_time(compression: str) -> None:
    """If each stream copied the bytes after it, these would be 20 GB."""
    compress = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": compress_zstd}[compression]
    text = compress(b"text\n")
    num_streams = (1 << 20) // len(text)
    data = text * num_streams + bytes(7) + compress(b"")
    stream = DecompressedStream(io.BytesIO(data), compression)
    started = time.process_time()
    assert stream.read(10) == b"text\ntext\n"
    blocks = list(iter(functools.partial(stream.read, 1 << 16), b""))
    assert b"".join(blocks) == b"text\n" * (num_streams - 2)
    assert {len(block) for block in blocks[:-1]} == {1 << 16}  # a block per stream would be slow for readers
    assert time.process_time() - started < 2


def compress_zstd(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return compressed


def test_file_whose_first_frame_has_one_byte_is_known_by_the_first_bytes_of_all_frames(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))
    table = "text\ntext\n".encode("utf-8-sig")
    for name, data in (
        ("a.tar.gz", buffer.getvalue()), ("a.txt.gz", "text".encode("utf-16")), ("a.csv.gz", table),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(gzip.compress(data[:1]) + gzip.compress(data[1:]))
        assert read_texts(build_files(tmp_path, tmp_path / name, val_fraction=0)) == ["text"]


def test_file_that_changes_or_is_removed_while_it_is_read_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from preprocess.build import prepare

    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": w}) for w in WORDS))
    read_documents = prepare.read_documents

    def read_and_append(*arguments: Any) -> Any:
        for batch in read_documents(*arguments):
            yield batch
            with open(path, "a") as file:
                file.write('\n{"text": "late"}')

    monkeypatch.setattr(prepare, "read_documents", read_and_append)
    with pytest.raises(FolioError, match="a.jsonl changed while it was read"):
        build_files(tmp_path, path)
    monkeypatch.undo()

    def remove_and_read(*arguments: Any) -> Any:
        path.unlink(missing_ok=True)
        return read_documents(*arguments)

    monkeypatch.setattr(prepare, "read_documents", remove_and_read)
    with pytest.raises(FolioError, match="a.jsonl was removed while it was read"):
        build_files(tmp_path, path)


@pytest.mark.parametrize("is_changed", [True, False])
def test_file_that_keeps_size_and_time_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_changed: bool
) -> None:
    from preprocess.build import build

    path = tmp_path / "a.txt"
    path.write_text("\n".join(WORDS))
    make_plan = build.make_plan

    def plan_and_write(*arguments: Any, **options: Any) -> Any:
        plan, before = make_plan(*arguments, **options), path.stat()
        time.sleep(0.02)  # some file systems count time in steps of a few milliseconds
        path.write_text(path.read_text().upper() if is_changed else path.read_text())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_ctime_ns > before.st_ctime_ns
        return plan

    monkeypatch.setattr(build, "make_plan", plan_and_write)
    if is_changed:
        with pytest.raises(FolioError, match="a.txt changed while it was read .*another sha256"):
            build_files(tmp_path, path, document="line")
    else:
        assert read_texts(build_files(tmp_path, path, document="line")) == WORDS
