"""Batches and validation blocks of whole recipes, the documentation, and the benchmark."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from preprocess.build.build import build
from preprocess.errors import MisuseError
from preprocess.progress import Progress
from preprocess.shards.torch_dataset import Documents, make_loader
from preprocess.stream import (
    StreamCorpus,
    TokenStream,
    batches,
    masked_batches,
    masked_blocks,
    open_corpus,
    validation_blocks,
)
from tests.conftest import ROOT, assert_one_line
from tests.preprocess.stream.helpers import EOT, open_files, write_parquet


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


def test_masked_batches_are_those_of_a_builds_documents(tmp_path: Path) -> None:
    """All documents fill one block each, except the last, which is shorter."""
    path = write_parquet(tmp_path / "x.parquet", [*(f"document {i:02}" for i in range(30)), "short"])
    corpus = open_files(path)
    build(corpus.recipe, tmp_path / "own", name="own", replace=False, progress=Progress(quiet=True))
    documents = Documents(tmp_path / "own")
    (expected,) = make_loader(documents, batch_size=100)
    (found,) = masked_batches(TokenStream(corpus, block_size=11, stream_buffer=0, tail="pad"), 100)
    assert found.keys() == expected.keys() and 10 < len(expected["labels"]) == len(documents)
    for key, tensor in expected.items():
        assert torch.from_numpy(found[key]).dtype == tensor.dtype and torch.from_numpy(found[key]).equal(tensor), key
    assert found["labels"][-1].tolist() == [*b"short", EOT, *[-100] * 6]


@pytest.mark.parametrize("stream_buffer", [0, 20, 10_000])
def test_masked_blocks_mark_the_padding_of_one_block(corpus: StreamCorpus, stream_buffer: int) -> None:
    def fresh(tail: str = "pad") -> TokenStream:
        return TokenStream(corpus, block_size=16, stream_buffer=stream_buffer, tail=tail, seed=2)

    stream, states = fresh(), []
    masked = masked_blocks(stream)
    found = []
    while True:
        states.append(stream.state_dict())
        if (block := next(masked, None)) is None:
            break
        found.append(block)
    for block, tokens in zip(found, fresh(), strict=True):
        is_text = block["attention_mask"] == 1
        assert block["input_ids"].tolist() == tokens.tolist()
        assert block["labels"].tolist() == np.where(is_text, tokens.astype(np.int64), -100).tolist()
        assert is_text.tolist() == sorted(is_text.tolist(), reverse=True)  # padding is at the end
        assert is_text.all() or (tokens[~is_text] == EOT).all()
    num_masked = [int((block["attention_mask"] == 0).sum()) for block in found]
    assert sorted(num_masked)[-2:] == [0, stream.num_padded] and 0 < stream.num_padded < 17
    assert stream_buffer < 10_000 or num_masked[-1] == 0  # the order is such that another block is the last
    for number in (0, 7, int(np.argmax(num_masked)), len(found) - 1):
        again = fresh()
        again.load_state_dict(states[number])
        rest = list(masked_blocks(again))
        assert len(rest) == len(found) - number
        for block, expected in zip(rest, found[number:], strict=True):
            assert all(np.array_equal(block[key], expected[key]) for key in expected)
    assert all(block["attention_mask"].all() for block in masked_blocks(fresh("drop")))


def test_masked_batches_have_every_block(corpus: StreamCorpus) -> None:
    blocks = list(masked_blocks(TokenStream(corpus, block_size=16, tail="pad")))
    found = list(masked_batches(TokenStream(corpus, block_size=16, tail="pad"), 7))
    assert [len(batch["labels"]) for batch in found] == [7] * (len(blocks) // 7) + [len(blocks) % 7]
    for key in ("input_ids", "attention_mask", "labels"):
        assert np.array_equal(np.concatenate([batch[key] for batch in found]), [block[key] for block in blocks])


@pytest.mark.parametrize("make_batches", [batches, masked_batches])
@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_batches_reject_an_invalid_size(corpus: StreamCorpus, make_batches: Any, batch_size: Any) -> None:
    with pytest.raises(MisuseError, match="batch_size must be a whole number of 1 or more") as caught:
        next(make_batches(TokenStream(corpus, block_size=16), batch_size))
    assert_one_line(str(caught.value))


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
    first, second, _ = read_examples()
    first += (
        "print(inputs.shape, targets.dtype, val.blocks.shape[1], state['drawn'] // 8 == stream.num_blocks // 8 > 10)\n"
    )
    second += "print(repr(corpus.tokenizer.decode(next(TokenStream(corpus, block_size=100)))))\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", first + second], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    shapes, english = ran.stdout.splitlines()
    assert shapes == "(8, 256) uint16 257 True" and "Q: English" in english and "French" not in english


@pytest.mark.slow
def test_documentation_trains_with_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs accelerate")
    (tmp_path / "input.txt").write_text("a short line\n" * 200)
    settings = 'inputs = ["input.txt"]\ndocument = "line"\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\n'
    (tmp_path / "mine.toml").write_text(settings + "val_fraction = 1e-9\n")
    *_, code = read_examples()
    small = {
        "n_positions=256": "n_positions=256, n_embd=8, n_layer=1, n_head=1",
        "max_steps=1_000": "max_steps=3, report_to='none', use_cpu=True, save_strategy='no', logging_steps=1",
        "block_size=255": "block_size=99",
    }
    for setting, value in small.items():
        assert setting in code
        code = code.replace(setting, value)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", ran.stdout)]
    assert len(losses) == 3 and all(4 < loss < 7 for loss in losses), ran.stdout


def read_examples() -> list[str]:
    """Return the examples of docs/streaming.md."""
    text = (ROOT / "docs/streaming.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_stream_benchmark_runs(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "bench/stream.py", "--smoke"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
    ).stdout  # fmt: skip
    assert "| Folio" in out and "tokens/s" in out


def test_validation_blocks_need_little_more_memory_than_their_tokens(tmp_path: Path) -> None:
    text = "".join(f"line number {i}\n" for i in range(12_000))
    (tmp_path / "a.txt").write_text(text)
    options = {"tokenizer": "byte", "val_fraction": 0.5, "split": "threshold", "document": "line", "dedup": False}
    corpus = open_corpus(None, inputs=(str(tmp_path / "a.txt"),), log=lambda line: None, **options)
    validation_blocks(corpus, block_size=8, eval_tokens=8)  # loads what it needs once
    peaks = []
    for eval_tokens in (8, None):
        tracemalloc.start()
        blocks = validation_blocks(corpus, block_size=8, eval_tokens=eval_tokens).blocks
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert blocks.nbytes > 100_000
    assert peaks[1] - peaks[0] < 2 * blocks.nbytes, (peaks, blocks.nbytes)  # a list of short arrays: nine times
