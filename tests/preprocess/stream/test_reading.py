"""Reading documents: shares, splits, read errors, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.stream import Retries, StreamCorpus, TokenStream, open_corpus
from preprocess.stream.reading import Cursor
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files
from tests.preprocess.stream.helpers import (
    FlakyFile,
    make_texts,
    open_files,
    read_documents,
    write_file,
    write_parquet,
)


def test_shares_are_even_and_mix_alternating_documents(tmp_path: Path) -> None:
    corpus = open_files(
        write_parquet(tmp_path / "x.parquet", [f"{i % 2}" for i in range(400)], row_group_size=50), val_fraction=1e-9
    )
    shares = [
        read_documents(TokenStream(corpus, block_size=9, tail="pad", rank=rank, world_size=2)) for rank in range(2)
    ]
    assert [len(share) for share in shares] == [200, 200] and all(60 < share.count(b"0") < 140 for share in shares)


def test_reader_opens_no_file_of_the_other_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "validation-0.parquet", ["validates"])
    (tmp_path / "train-0.parquet").write_bytes(b"no Parquet")
    write_parquet(tmp_path / "test-0.parquet", ["tests"])
    corpus = open_corpus("wikitext-103", inputs=(str(tmp_path / "*.parquet"),), tokenizer="byte")
    assert read_documents(TokenStream(corpus, block_size=4, split="val", tail="pad")) == [b"validates"]


def test_max_documents_counts_both_splits(tmp_path: Path) -> None:
    for name in ("train", "test", "validation"):
        write_parquet(tmp_path / f"{name}-0.parquet", [f"{name} {i}" for i in range(3)])
    corpus = open_corpus("wikitext-103", inputs=(str(tmp_path),), tokenizer="byte", max_documents=4)
    sides = {
        split: read_documents(TokenStream(corpus, block_size=4, split=split, stream_buffer=0, tail="pad"))
        for split in ("train", "val")
    }
    assert sides == {"train": [b"train 0", b"train 1", b"train 2"], "val": [b"validation 0"]}


def test_held_out_documents_train_if_no_others_do(tmp_path: Path) -> None:
    for name in ("validation", "test"):
        write_parquet(tmp_path / f"{name}-0.parquet", [name])
    corpus = open_corpus("wikitext-103", inputs=(str(tmp_path),), tokenizer="byte")
    assert read_documents(TokenStream(corpus, block_size=4, tail="pad")) == [b"test"]


def test_flaky_jsonl_file_loses_no_document(tmp_path: Path, small_reads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, lines = make_texts(80), []
    path = write_file(tmp_path / "x.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts).encode())
    corpus = open_files(path, log=lines.append)
    expected = list(TokenStream(corpus, block_size=16, stream_buffer=9))
    size = path.stat().st_size
    offsets = {0, 1, 2, size // 3, size // 2, size // 2 + 1, size - 1}
    monkeypatch.setattr(
        "preprocess.inputs.open_input.open", lambda path, *_, **__: FlakyFile(path, offsets), raising=False
    )
    found = list(TokenStream(corpus, block_size=16, stream_buffer=9, retries=Retries(tries=4, backoff_s=0.001)))
    assert np.array_equal(found, expected) and not offsets and len(lines) == 7
    for line in lines:
        assert str(path) in line and "Input/output error" in line
        assert_one_line(line)


def test_flaky_parquet_file_loses_no_document(
    tmp_path: Path, small_spans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_files(write_parquet(tmp_path / "x.parquet", make_texts(300), row_group_size=30))
    expected = list(TokenStream(corpus, block_size=16, stream_buffer=9))
    size = (tmp_path / "x.parquet").stat().st_size
    offsets, parquet_file = {10, size // 3, size // 2, size - 20}, pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda path, **options: parquet_file(pa.PythonFile(FlakyFile(path, offsets), "r"), **options)
    )
    found = list(TokenStream(corpus, block_size=16, stream_buffer=9, retries=Retries(backoff_s=0.001)))
    assert np.array_equal(found, expected) and not offsets


def test_failed_stream_continues_at_the_next_call(
    tmp_path: Path, small_reads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "x.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in make_texts(80)).encode())
    corpus = open_files(path)
    expected = list(TokenStream(corpus, block_size=16, stream_buffer=9))
    offsets = [path.stat().st_size // 2] * 3

    class Broken(FlakyFile):
        def read(self, size: int = -1) -> bytes:
            if offsets and self._file.tell() <= offsets[0] < self._file.tell() + size:
                raise OSError(5, f"Input/output error {offsets.pop()}")
            return self._file.read(size)

    monkeypatch.setattr("preprocess.inputs.open_input.open", lambda path, *_, **__: Broken(path, set()), raising=False)
    stream, found, errors = (
        TokenStream(corpus, block_size=16, stream_buffer=9, retries=Retries(tries=3, backoff_s=0.001)),
        [],
        [],
    )
    while True:
        try:
            found.append(next(stream))
        except FolioError as e:
            errors.append(str(e))
            state = stream.state_dict()
        except StopIteration:
            break
    assert np.array_equal(found, expected) and len(errors) == 1 and "in 3 tries" in errors[0] and state["group"] > 0
    assert_one_line(errors[0])


def test_damaged_or_missing_file_is_not_retried(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["a good one"] * 20)
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    stream = TokenStream(
        open_files(tmp_path), block_size=16, stream_buffer=0, retries=Retries(tries=2, backoff_s=0.001)
    )
    next(stream)  # a file is opened when its turn comes
    with pytest.raises(FolioError, match="cannot be read as Parquet"):
        list(stream)
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(FolioError, match="was removed"):
        list(stream)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_damaged_compressed_file_is_not_retried(tmp_path: Path, suffix: str) -> None:
    codec = {"gz": "gzip", "zst": "zstd"}[suffix]
    text = "\n".join(make_texts(200)).encode()
    data = pa.compress(text, codec=codec, asbytes=True)
    lines: list[str] = []
    path = write_file(tmp_path / f"x.txt.{suffix}", data[: len(data) // 2])
    with pytest.raises(FolioError, match=f"cannot be read as a {codec} file") as caught:
        list(TokenStream(open_files(path, document="line", log=lines.append), block_size=16))
    assert_one_line(str(caught.value))
    assert lines == []


def test_changed_file_must_be_restored(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.txt", "\n".join(make_texts(20)).encode())
    corpus = open_files(path, document="line")
    size = path.stat().st_size
    with open(path, "a") as file:
        file.write("more\n")
    sizes = f"{size:,} bytes, now {size + 5:,}"
    expected = rf"x.txt changed while it was read \({sizes}\); restore the file and continue from the last state"
    with pytest.raises(FolioError, match=expected) as caught:
        next(TokenStream(corpus, block_size=8))
    assert_one_line(str(caught.value))


def test_rejects_are_logged_by_file(tmp_path: Path) -> None:
    lines: list[str] = []
    path = write_file(tmp_path / "x.jsonl", b'{"text": "good enough"}\nbad\n{"text": null}\n' * 3)
    list(TokenStream(open_files(path, log=lines.append), block_size=4))
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: some documents were dropped or repaired: 3 malformed, 3 null text; the most")
    assert "of 3: invalid JSON" in lines[0] and lines[0].endswith("(first at x.jsonl, line 2 (byte 24))")


def test_error_without_documents_gives_the_reason_and_the_first_place(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.jsonl", b'{"text": 5}\n' * 62)
    with pytest.raises(FolioError) as caught:
        list(TokenStream(open_files(path), block_size=4))
    assert "62 malformed; the reason of all 62: text must be text, got number" in str(caught.value)
    assert "(first at x.jsonl, line 1 (byte 0)); check its files" in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"tries": 0}, {"tries": 10**6}, {"tries": "5"}, {"backoff_s": -1}, {"backoff_s": float("nan")}]
)
def test_retries_reject_values_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match=next(iter(arguments))) as caught:
        Retries(**arguments)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize("settings", [{}, {"document": "line"}, {"max_documents": 70}, {"min_characters": 12}])
def test_small_files_that_are_read_together_give_the_same_blocks_and_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 500)
    for number in range(20):
        text = "\n".join(make_texts(1 + number % 4 * 3, seed=number))  # some files are larger than a partition
        write_file(tmp_path / f"{1900 + number}-{'AB'[number % 2]}.txt", text.encode() if number % 7 else b"")
    names = {"name_pattern": r"(?P<year>\d+)-(?P<author>\w)", "split": "threshold", "val_fraction": 0.3}

    def open_stream(max_run_files: int) -> TokenStream:
        monkeypatch.setattr("preprocess.stream.reading.MAX_RUN_FILES", max_run_files)
        return TokenStream(open_files(tmp_path, **names, **settings), block_size=64, stream_buffer=3)

    expected, *others = (
        [(block.tolist(), stream.state_dict()) for block in stream] for stream in map(open_stream, (64, 1, 3))
    )
    assert others == [expected, expected] and len(expected) > 20
    # Resuming at any state, which may begin a run in the middle of the others, gives the same blocks.
    for number in range(1, len(expected), len(expected) // 4):
        stream = open_stream(5)
        stream.load_state_dict(expected[number][1])
        assert [block.tolist() for block in stream] == [block for block, _ in expected[number + 1 :]]


def test_small_files_share_a_batch_and_their_rejects_are_logged_together(tmp_path: Path) -> None:
    lines: list[str] = []
    for number in range(130):
        write_file(tmp_path / f"{number:03}.jsonl", b'{"text": "good enough"}\nbad\n')
    stream = TokenStream(open_files(tmp_path, log=lines.append), block_size=4)
    batches = list(stream._reader.read(Cursor()))
    assert [len(selected.rows) for selected in batches] == [64, 64, 2]
    paths = [tmp_path / f"{number:03}.jsonl" for number in (0, 63, 64, 127, 128, 129)]
    counts = ("64 malformed", "64 malformed", "2 malformed")
    for line, first, last, count in zip(lines, paths[::2], paths[1::2], counts, strict=True):
        assert line.startswith(f"{first} to {last}: some documents were dropped or repaired: {count}; the reason")


def read_split(corpus: StreamCorpus, split: str) -> list[bytes]:
    """Return the documents of a split."""
    return read_documents(TokenStream(corpus, block_size=16, split=split, tail="pad", stream_buffer=0))


def test_parts_of_long_documents_are_on_one_side_unless_there_is_only_one(tmp_path: Path) -> None:
    words = [f"{i}-word{j}" for i in range(30) for j in range(8)]
    write_file(tmp_path / "lines.txt", "\n".join(" ".join(words[i : i + 8]) for i in range(0, 240, 8)).encode())
    write_file(tmp_path / "one.txt", " ".join(words).encode())
    settings = {"max_document_bytes": 40, "val_fraction": 0.3}
    corpus = open_files(tmp_path / "lines.txt", document="line", **settings)
    numbers = [
        {int(text.split()[0].partition(b"-")[0]) for text in read_split(corpus, split)} for split in ("train", "val")
    ]
    assert numbers[0] | numbers[1] == set(range(30)) and not numbers[0] & numbers[1] and numbers[1]
    # The parts of a single text are split as in a build.
    corpus = open_files(tmp_path / "one.txt", **settings)
    parts = [read_split(corpus, split) for split in ("train", "val")]
    result = build_files(tmp_path, tmp_path / "one.txt", split="threshold", **settings)
    assert [len(of_side) for of_side in parts] == [result.manifest.splits[s].documents for s in ("train", "val")]
    assert len(parts[1]) > 5
