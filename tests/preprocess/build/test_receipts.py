"""Receipts: what is written is read, and what is damaged is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from preprocess.build.receipts import (
    EncodeReceipt,
    EncodingReport,
    FileChecksum,
    PrepareReceipt,
    read_receipt,
    write_receipt,
)
from preprocess.build.work_dir import WorkDir
from preprocess.readers.reject_reasons import RejectReason
from preprocess.shards.files import canonical_json

REPORT = EncodingReport(backend="tiktoken", backend_fallback=None, peak_memory_bytes=1 << 30)
RECEIPT = PrepareReceipt(
    files={"docs": FileChecksum(66, "0123456789abcdef")},
    num_documents=1,
    text_bytes=5,
    num_positions=[(0, 1), (3, 0)],
    dropped={"empty": 2},
    reasons=[RejectReason("empty", "no text", 2, "a.txt", "document 0")],
    cleaned={},
    encoding=REPORT,
)


@pytest.mark.parametrize("receipt", [RECEIPT, dataclasses.replace(RECEIPT, encoding=None)])
def test_receipt_survives_write_and_read(tmp_path: Path, receipt: PrepareReceipt) -> None:
    write_receipt(tmp_path / "receipt.json", receipt)
    assert read_receipt(tmp_path / "receipt.json", PrepareReceipt) == receipt
    assert [path.name for path in tmp_path.iterdir()] == ["receipt.json"]
    assert read_receipt(tmp_path / "receipt.json", EncodeReceipt) is None
    assert read_receipt(tmp_path / "another.json", PrepareReceipt) is None


@pytest.mark.parametrize(
    "change",
    [
        {"num_documents": "1"}, {"num_documents": True}, {"num_documents": None},
        {"files": [1]}, {"files": {"docs": [66, "0"]}}, {"files": {"docs": {"size_bytes": 66}}},
        {"num_positions": [[0, 1, 2]]}, {"num_positions": [0]}, {"encoding": {}}, {"dropped": {"empty": "2"}},
        {"reasons": {}}, {"reasons": [{"kind": "empty"}]},
        {"unknown": 1},
    ],
)  # fmt: skip
def test_read_receipt_rejects_other_types(tmp_path: Path, change: dict[str, Any]) -> None:
    fields = {**json.loads(json.dumps(dataclasses.asdict(RECEIPT))), **change}
    digest = xxhash.xxh3_64(canonical_json(fields)).hexdigest()
    (tmp_path / "receipt.json").write_text(json.dumps({"receipt": fields, "xxh3": digest}))
    assert read_receipt(tmp_path / "receipt.json", PrepareReceipt) is None


def test_read_receipt_rejects_every_truncation(tmp_path: Path) -> None:
    write_receipt(tmp_path / "receipt.json", RECEIPT)
    data = (tmp_path / "receipt.json").read_bytes()
    for damaged in [*(data[:length] for length in range(len(data))), bytes(len(data)), data[:-1] + b"\xff"]:
        (tmp_path / "receipt.json").write_bytes(damaged)
        assert read_receipt(tmp_path / "receipt.json", PrepareReceipt) is None


def test_read_receipt_rejects_a_flipped_bit_in_any_byte(tmp_path: Path) -> None:
    """A digit with another bit is a digit or a letter, so a damaged receipt may be valid JSON of the right types."""
    path = tmp_path / "receipt.json"
    write_receipt(path, RECEIPT)
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 7):  # in every byte
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_receipt(path, PrepareReceipt) in (None, RECEIPT), damaged


@pytest.mark.parametrize("damage", [b"", b"other", bytes(7), None])
def test_work_dir_ignores_the_receipt_of_a_changed_file(tmp_path: Path, damage: bytes | None) -> None:
    work_dir = WorkDir(tmp_path)
    with work_dir.create_files(3, "ids") as files:
        files["ids"].write(b"content")
    receipt = EncodeReceipt(files={"ids": files["ids"].checksum}, num_documents=1, encoding=REPORT)
    work_dir.write_receipt(3, receipt)
    assert work_dir.read_receipt(3, EncodeReceipt) == receipt
    if damage is None:
        work_dir.file(3, "ids").unlink()
    else:
        work_dir.file(3, "ids").write_bytes(damage)
    assert work_dir.read_receipt(3, EncodeReceipt) is None


def test_work_dir_leaves_no_file_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), WorkDir(tmp_path).create_files(0, "docs", "ids") as files:
        files["docs"].write(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
