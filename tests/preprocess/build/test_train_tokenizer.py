"""The texts that a tokenizer is trained on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from preprocess.build.split_assignment import SplitAssignment
from preprocess.build.train_tokenizer import choose_texts
from preprocess.build.work_dir import DOCUMENT_DTYPE, WorkDir, iter_chunks
from preprocess.documents import VAL
from tests.preprocess.build.helpers import make_recipe, write_documents


def write_texts(work_dir: WorkDir, texts: list[str], batch_documents: int) -> SplitAssignment:
    """Write `texts` as one partition. Every fourth document is for validation."""
    num_documents = write_documents(work_dir, list(range(len(texts))), list(range(len(texts))), [])
    [chunk] = iter_chunks(num_documents)
    table = work_dir.map_documents(chunk).copy()
    table["text_bytes"] = [len(text.encode()) for text in texts]
    table.astype(DOCUMENT_DTYPE).tofile(work_dir.file(0, "docs"))
    schema = pa.schema([("text", pa.large_string())])
    with pa.ipc.new_stream(str(work_dir.file(0, "text")), schema) as writer:
        for first in range(0, len(texts), batch_documents):
            writer.write_batch(
                pa.record_batch([pa.array(texts[first : first + batch_documents], "large_string")], schema)
            )
    assignment = SplitAssignment(work_dir, num_documents)
    assignment.work_dir.map_sides(chunk)[::4] = VAL
    return assignment


def test_choose_texts_takes_slices_of_training_documents_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.build.train_tokenizer.SLICE_CHARACTERS", 10)
    texts = [f"{i:02d}" + "д" * (i % 30) for i in range(60)]
    assignment = write_texts(WorkDir(tmp_path), texts, batch_documents=7)
    train = [text for i, text in enumerate(texts) if i % 4]
    slices = [text[start : start + 10] for text in train for start in range(0, len(text), 10)]
    assert list(choose_texts(make_recipe(sample_bytes=10**6), assignment)) == slices
    chosen = list(choose_texts(make_recipe(sample_bytes=600), assignment))
    remaining = iter(slices)
    assert all(text in remaining for text in chosen) and 0 < len(chosen) < len(slices) / 2  # a subsequence
    assert chosen != list(choose_texts(make_recipe(sample_bytes=600, seed=1), assignment))


def test_choose_texts_limits_the_number_of_short_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.build.train_tokenizer.MAX_SLICES", 100)
    assignment = write_texts(WorkDir(tmp_path), [f"{i}" for i in range(4000)], batch_documents=1000)
    assert 60 < len(list(choose_texts(make_recipe(sample_bytes=10**6), assignment))) < 140
