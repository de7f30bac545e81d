"""Fixtures of the reader tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[16 << 20, 100], ids=["one partition", "many partitions"])
def partition_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with files in one span and in many, and always with many small blocks."""
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", request.param)
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", min(request.param, 64))
    monkeypatch.setattr("preprocess.readers.record_blocks.PROBE_BYTES", 7)
