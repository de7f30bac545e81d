"""Writing shards: round trip, golden bytes, any order of writers, rejected input."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.shards.format import DOC_DTYPE
from preprocess.shards.writer import (
    EncodedDocuments,
    ShardPlan,
    ShardSealer,
    WriteOffset,
    create_shard,
    write_documents,
)
from tests.conftest import write_split
from tests.preprocess.shards.helpers import make_docs


def write(folder: Path, documents: list[list[int]], *, vocab_size: int = 300, shard_tokens: int = 10) -> dict:
    ids = np.array([t for d in documents for t in d], np.uint32)
    ends = np.cumsum([len(d) for d in documents])
    docs = make_docs(len(documents))
    return write_split(folder, "train", ids, ends, docs, vocab_size=vocab_size, shard_tokens=shard_tokens)


@settings(deadline=None, max_examples=40)  # every example fsyncs dozens of files
@given(st.lists(st.lists(st.integers(0, 299), max_size=12), max_size=20), st.integers(1, 40))
def test_documents_survive_write_and_read(tmp_path_factory, documents, shard_tokens) -> None:
    folder = tmp_path_factory.mktemp("w")
    found, sizes = [], []
    for entry in write(folder, documents, shard_tokens=shard_tokens)["shards"]:
        tokens = np.fromfile(folder / entry["file"], "<u2").tolist()
        ends = np.fromfile((folder / entry["file"]).with_suffix(".ends"), "<u8").tolist()
        found += [tokens[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        sizes.append((entry["tokens"], len(found[-1])))
    assert found == documents
    # A shard ends with the document that takes it to shard_tokens; only the last shard may be
    # shorter.
    assert all(tokens >= shard_tokens and tokens - last < shard_tokens for tokens, last in sizes[:-1])


def test_golden_shard_bytes(tmp_path: Path) -> None:
    write(tmp_path, [[1, 256], [2]], shard_tokens=100)
    assert (tmp_path / "train-00000.bin").read_bytes() == b"\x01\x00\x00\x01\x02\x00"
    assert (tmp_path / "train-00000.ends").read_bytes() == b"\x02" + b"\x00" * 7 + b"\x03" + b"\x00" * 7
    docs = np.array([(range(16), 0x01020304, 5, 6)], DOC_DTYPE)
    assert docs.tobytes() == bytes(range(16)) + b"\x04\x03\x02\x01" + b"\x05\0\0\0" + b"\x06" + b"\0" * 7


def test_write_documents_rejects_an_id_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        write(tmp_path, [[300]])


def test_write_documents_keeps_ids_beyond_16_bits(tmp_path: Path) -> None:
    entry = write(tmp_path, [[65_536, 7]], vocab_size=65_537)["shards"][0]
    assert np.fromfile(tmp_path / entry["file"], "<u4").tolist() == [65_536, 7]
    assert entry["bytes"] == 8


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), min_size=2, max_size=12), st.data())
def test_shard_bytes_do_not_depend_on_the_order_of_writes(tmp_path_factory, documents, data) -> None:
    """Two parts are written in either order, and hashed meanwhile or at the end."""
    cut = data.draw(st.integers(1, len(documents) - 1))
    ids, ends = np.array([t for d in documents for t in d], np.uint32), np.cumsum([len(d) for d in documents])
    plan = ShardPlan("train", 0, len(ids), len(documents))
    entries = []
    for order in ((0, 1), (1, 0)):
        folder = tmp_path_factory.mktemp("w")
        create_shard(folder, plan, vocab_size=300)
        sealer, boundary = ShardSealer(folder, plan, vocab_size=300), int(ends[cut - 1])
        docs = make_docs(len(documents))
        parts = [
            (WriteOffset(0, 0), EncodedDocuments(ids[:boundary], ends[:cut], docs[:cut])),
            (WriteOffset(boundary, cut), EncodedDocuments(ids[boundary:], ends[cut:] - boundary, docs[cut:])),
        ]
        max_id = -1
        for part in order:
            max_id = max(max_id, write_documents(folder, plan, *parts[part], vocab_size=300))
            if order == (0, 1) and part == 0:
                sealer.advance(boundary, cut)
        entries.append(sealer.finish(max_id))
    assert entries[0] == entries[1]
    assert entries[0].sha256 == hashlib.sha256(ids.astype("<u2").tobytes()).hexdigest()
    assert entries[0].max_id == int(ids.max())
    assert np.fromfile(folder / "train-00000.ends", "<u8").tolist() == ends.tolist()


def test_an_error_of_a_flush_in_the_background_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk reports it to the first flush only, and the shard would be sealed without its data."""
    plan = ShardPlan("train", 0, 4, 2)
    create_shard(tmp_path, plan, vocab_size=10)
    sealer = ShardSealer(tmp_path, plan, vocab_size=10)
    results = iter([OSError(errno.EIO, "Input/output error"), None, None, None])

    def sync(path: Path) -> None:
        if error := next(results):
            raise error

    monkeypatch.setattr("preprocess.shards.writer._sync", sync)
    monkeypatch.setattr("preprocess.shards.writer.MIN_FLUSH_BYTES", 1)
    sealer.advance(2, 1)
    assert sealer._flushing is not None and sealer._flushing.exception() is not None
    with pytest.raises(OSError, match="Input/output error"):
        sealer.finish(0)


def test_write_documents_rejects_arrays_that_do_not_belong_together(tmp_path: Path) -> None:
    plan = ShardPlan("train", 0, 3, 1)
    create_shard(tmp_path, plan, vocab_size=10)
    with pytest.raises(ValueError, match="documents do not match"):
        documents = EncodedDocuments(np.zeros(3, np.uint32), np.array([2]), make_docs(1))
        write_documents(tmp_path, plan, WriteOffset(0, 0), documents, vocab_size=10)


def test_create_shard_rejects_more_shards_than_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.shards.writer.MAX_SHARDS", 2)
    expected = "the train split needs more than 2 shards, the maximum; pass a larger --shard-tokens"
    with pytest.raises(FolioError, match=expected):
        write(tmp_path, [[1], [2], [3]], shard_tokens=1)
