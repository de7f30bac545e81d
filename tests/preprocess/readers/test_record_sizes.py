"""Records are divided by the size of their documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from preprocess.readers.records import Rejects
from tests.preprocess.readers.helpers import iter_texts, list_texts


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_documents_that_a_template_makes_long_are_in_small_batches(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.readers.record_sizes.BATCH_BYTES", 10_000)
    path = tmp_path / f"a{suffix}"
    values = [f"{i:03} " * 50 for i in range(100)]
    lines = [json.dumps({"text": value}) for value in values] if suffix == ".jsonl" else ["text", *values]
    path.write_text("\n".join(lines))
    batches = list(iter_texts(path, template="{text}" * 20))
    assert [text for batch in batches for text in batch.to_pylist()] == [value * 20 for value in values]
    assert max(map(len, batches)) == 2  # documents of 4,000 bytes each


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_document_that_a_template_makes_too_long_is_an_error_or_left_out(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.readers.record_sizes.get_max_record_bytes", lambda recipe: 1000)
    path = tmp_path / f"a{suffix}"
    values = ["a" * 50, "b" * 200, "c"]
    lines = [json.dumps({"text": value}) for value in values] if suffix == ".jsonl" else ["text", *values]
    path.write_text("\n".join(lines))
    location = "the record at byte 63" if suffix == ".jsonl" else "row 3"
    with pytest.raises(FolioError, match=rf"a{suffix}: {location} has more than 1,000 bytes; shorten it"):
        list_texts(path, template="{text}" * 10)
    rejects = Rejects(None)
    assert list_texts(path, rejects, template="{text}" * 10, oversized="skip") == ["a" * 500, "c" * 10]
    assert rejects.counts["oversized"] == 1
