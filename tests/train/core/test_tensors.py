"""Safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_one_line
from train.core import tensors
from train.core.tensors import TensorFileError, read_metadata, read_tensors, write_tensors


def test_file_with_a_long_header_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {f"weight.{i}": torch.ones(1) for i in range(100)}, {"about": "a test"})
    assert len(dict(read_tensors(path))) == 100 and read_metadata(path) == {"about": "a test"}
    monkeypatch.setattr(tensors, "MAX_HEADER_BYTES", 1000)
    for read in (read_metadata, lambda path: dict(read_tensors(path))):
        with pytest.raises(TensorFileError, match="has a header of [0-9,]+ bytes, expected at most 1,000") as caught:
            read(path)
        assert_one_line(str(caught.value))


def test_damaged_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    for data in (b"", b"\xff" * 8, b"\xff" * 100, len(header).to_bytes(8, "little") + header):
        path.write_bytes(data)
        with pytest.raises(TensorFileError, match="is not a safetensors file") as caught:
            dict(read_tensors(path))
        assert_one_line(str(caught.value))
