"""Batches and validation blocks of whole recipes, the documentation, and the benchmark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.stream import TokenStream, batches, open_corpus, validation_blocks
from tests.conftest import ROOT, assert_one_line
from tests.preprocess.stream.helpers import (
    write_parquet,
)


def test_batches_of_wikitext(tmp_path: Path) -> None:
    rows = ["", " = Robert = \n", *(f" Paragraph {i} of an article , with @-@ signs . \n" for i in range(2_000))]
    write_parquet(tmp_path / "train-00000-of-00001.parquet", rows, row_group_size=500)
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", rows[:300])
    corpus = open_corpus("wikitext-103", inputs=(str(tmp_path / "*.parquet"),))
    stream = TokenStream(corpus, block_size=256, stream_buffer=100, seed=1)
    found = list(batches(stream, 8))
    assert len(found) == stream.num_blocks // 8 > 10
    for inputs, targets in found:
        assert inputs.shape == targets.shape == (8, 256) and (inputs[:, 1:] == targets[:, :-1]).all()
    val = validation_blocks(corpus, block_size=256, eval_tokens=1_000)
    assert val.blocks.shape == (3, 257) and 2 < val.num_text_bytes / val.num_tokens < 6
    assert len(validation_blocks(corpus, block_size=256, eval_tokens=None).blocks) > 3


def test_synth_applies_template_language_and_cap(tmp_path: Path) -> None:
    columns = {
        name: [f"{name} {i}" for i in range(300)] for name in ("query", "synthetic_reasoning", "synthetic_answer")
    }
    columns["language"] = ["en" if i % 3 else "fr" for i in range(300)]
    pq.write_table(pa.table(columns), tmp_path / "synth.parquet", row_group_size=40)
    notes: list[str] = []
    corpus = open_corpus(
        "synth", inputs=(str(tmp_path / "synth.parquet"),), max_documents=50, val_fraction=0.1, log=notes.append
    )
    for note, word in zip(notes, ("duplicates are kept", "by threshold", "the first 50"), strict=True):
        assert word in note
        assert_one_line(note)
    texts = []
    for split in ("train", "val"):
        stream = TokenStream(corpus, block_size=64, split=split, stream_buffer=0, tail="pad")
        tokens = np.concatenate(list(stream))
        parts = corpus.tokenizer.decode(tokens[: len(tokens) - stream.num_padded]).split("<|endoftext|>")
        texts += [part for part in parts if part]
    expected = [
        f"Q: query {i}\n\nReasoning:\nsynthetic_reasoning {i}\n\nA: synthetic_answer {i}" for i in range(300) if i % 3
    ][:50]
    assert "".join(texts).count("Q: ") == 50 and all(text in "".join(texts) for text in expected)


def test_documentation_runs(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        path = tmp_path / "wikitext-103-raw-v1" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        write_parquet(path, [f" Paragraph {i} of an article , with @-@ signs . \n" for i in range(2_000)])
    (tmp_path / "synth").mkdir()
    texts = {name: ["English", "French"] * 20 for name in ("query", "synthetic_reasoning", "synthetic_answer")}
    pq.write_table(pa.table({**texts, "language": ["en", "fr"] * 20}), tmp_path / "synth" / "x.parquet")
    first, second = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/streaming.md").read_text(encoding="utf-8"), re.DOTALL
    )
    first += (
        "print(inputs.shape, targets.dtype, val.blocks.shape[1], state['drawn'] // 8 == stream.num_blocks // 8 > 10)\n"
    )
    second += "print(repr(corpus.tokenizer.decode(next(TokenStream(corpus, block_size=100)))))\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", first + second], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    shapes, english = ran.stdout.splitlines()
    assert shapes == "(8, 256) uint16 257 True" and "Q: English" in english and "French" not in english


def test_stream_benchmark_runs(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "bench/stream.py", "--smoke"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
    ).stdout  # fmt: skip
    assert "| Folio" in out and "tokens/s" in out
