"""Compressed files, and files that change while they are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from preprocess.errors import FolioError
from tests.helpers.file_builds import WORDS, build_files, read_texts


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_of_several_frames_are_read_and_truncated_ones_raise(tmp_path: Path, suffix: str) -> None:
    compress = gzip.compress if suffix == ".gz" else lambda data: pa.compress(data, codec="zstd", asbytes=True)
    rows = [
        json.dumps({"text": f"{w} {i} ".ljust(60, str(i % 10))}).encode() + b"\n" for i in range(500) for w in WORDS
    ]
    half = len(rows) // 2
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(b"".join(rows[:half])) + compress(b"".join(rows[half:])))
    assert read_texts(build_files(tmp_path, path)) == [json.loads(row)["text"] for row in rows]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 20])
    with pytest.raises(FolioError, match=rf"a.jsonl{suffix} cannot be decompressed .* copy it again"):
        build_files(tmp_path, path)
    path.write_bytes(b"this is not a compressed file")
    with pytest.raises(FolioError, match="cannot be decompressed"):
        build_files(tmp_path, path)


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
