"""Blocks: every token once, a fixed order, and resuming at any block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.stream import StreamCorpus, TokenStream, validation_blocks
from tests.conftest import ROOT, assert_one_line
from tests.preprocess.stream.helpers import (
    FORMATS,
    WORDS,
    make_texts,
    open_files,
    read_documents,
    write_parquet,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), max_size=30),
    block_size=st.integers(1, 70),
    world_size=st.integers(1, 3),
    num_workers=st.integers(1, 3),
    val_fraction=st.sampled_from([0.001, 0.4]),
    seed=st.integers(0, 3),
)
def test_stream_has_every_token_once_and_every_document_in_one_share(
    tmp_path: Path,
    small_spans: None,
    texts: list[str],
    block_size: int,
    world_size: int,
    num_workers: int,
    val_fraction: float,
    seed: int,
) -> None:
    texts = ["the first", *texts]
    whole = open_files(write_parquet(tmp_path / "x.parquet", texts, row_group_size=3), val_fraction=val_fraction)
    found: dict[str, list[bytes]] = {}
    for split in ("train", "val"):
        arguments = {"block_size": block_size, "split": split, "tail": "pad", "stream_buffer": 0, "seed": seed}
        try:
            found[split] = read_documents(TokenStream(whole, **arguments))
        except FolioError as e:
            assert "no document is left" in str(e)
            found[split] = []
        shared: list[bytes] = []
        for rank in range(world_size):
            for worker in range(num_workers):
                shares = {"rank": rank, "world_size": world_size, "worker": worker, "num_workers": num_workers}
                try:
                    part = read_documents(TokenStream(whole, **arguments, **shares))
                except FolioError as e:
                    assert "no document is left" in str(e)
                    continue
                positions = [found[split].index(document) for document in part]
                assert positions == sorted(positions) or len(set(texts)) < len(texts)
                shared += part
        assert Counter(shared) == Counter(found[split])
    assert Counter(found["train"] + found["val"]) == Counter(text.encode() for text in texts if text)


def test_stream_without_buffer_keeps_the_order_of_documents(tmp_path: Path, small_spans: None) -> None:
    texts = make_texts(50)
    corpus = open_files(write_parquet(tmp_path / "x.parquet", texts))
    found = [
        read_documents(TokenStream(corpus, block_size=16, split=split, tail="pad", stream_buffer=0))
        for split in ("train", "val")
    ]
    assert sorted(b"".join(found[0] + found[1])) == sorted("".join(texts).encode())
    assert [text.encode() for text in texts if text.encode() in found[0]] == found[0] and len(found[1]) in range(3, 20)
    dropped = list(TokenStream(corpus, block_size=16, stream_buffer=0))
    padded = list(TokenStream(corpus, block_size=16, stream_buffer=0, tail="pad"))
    assert np.array_equal(dropped, padded[:-1]) and all(
        len(block) == 17 and block.dtype == np.uint16 for block in padded
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("stream_buffer", "epochs"), [(0, 2), (8, 1), (50, 2), (10_000, 1)])
def test_load_state_dict_continues_with_the_next_block(
    tmp_path: Path, small_spans: None, form: str, stream_buffer: int, epochs: int
) -> None:  # fmt: skip
    document = {"document": "line"} if form in ("lines", "gzip") else {}
    corpus = open_files(*(FORMATS[form](tmp_path / str(i), make_texts(40, seed=i)) for i in range(2)), **document)

    def fresh() -> TokenStream:
        return TokenStream(
            corpus, block_size=32, stream_buffer=stream_buffer, epochs=epochs, seed=5, tail="pad", rank=1, world_size=2
        )

    stream, states, blocks = fresh(), [], []
    while True:
        states.append(json.loads(json.dumps(stream.state_dict())))
        block = next(stream, None)
        if block is None:
            break
        blocks.append(block)
    assert len(blocks) > 50 and [state["group"] * max(stream_buffer, 1) + state["drawn"] for state in states[:-1]] == [
        *range(len(blocks))
    ]
    for number in [*range(0, len(states), 19), len(states) - 1]:
        again = fresh()
        again.load_state_dict(states[number])
        assert again.num_blocks == number
        rest = list(again)
        assert len(rest) == len(blocks) - number and all(
            np.array_equal(a, b) for a, b in zip(rest, blocks[number:], strict=True)
        ), number


def test_repeated_restarts_change_no_block(corpus: StreamCorpus) -> None:
    expected = list(TokenStream(corpus, block_size=8, stream_buffer=20, epochs=2))
    state, found = TokenStream(corpus, block_size=8, stream_buffer=20, epochs=2).state_dict(), []
    while True:
        stream = TokenStream(corpus, block_size=8, stream_buffer=20, epochs=2)
        stream.load_state_dict(state)
        taken = [block for _, block in zip(range(33), stream, strict=False)]
        if not taken:
            break
        found += taken
        state = stream.state_dict()
    assert np.array_equal(found, expected)


def test_order_depends_on_the_seed_only(corpus: StreamCorpus) -> None:
    plain, shuffled, same_seed, other_seed = (
        [block.tobytes() for block in TokenStream(corpus, block_size=40, stream_buffer=n, seed=seed)]
        for n, seed in ((0, 1), (40, 1), (40, 1), (40, 2))
    )
    assert shuffled == same_seed != other_seed and shuffled != plain
    assert Counter(shuffled) == Counter(plain) == Counter(other_seed)
    assert len(set(plain)) == len(plain)
    positions = [plain.index(block) for block in shuffled]
    assert (
        all(abs(position - i) < 40 for i, position in enumerate(positions))
        and sum(a != b for a, b in enumerate(positions)) > len(shuffled) * 0.9
    )
    first, second = positions[:40], [position - 40 for position in positions[40:80]]
    assert first != second  # the groups have different orders


def test_golden_order_never_changes(corpus: StreamCorpus) -> None:
    blocks = TokenStream(corpus, block_size=8, stream_buffer=40, seed=1, rank=1, world_size=2)
    assert [bytes(next(blocks).astype(np.uint8)[:4]) for _ in range(5)] == [
        b"\x97\xa5\xe6\x9c",
        b"\xd0\xb5\xd1\x82",
        b"\x82 \xe6\x97",
        b"\x97\xa5\xe6\x9c",
        b" sea",
    ]


def test_block_is_not_a_view(corpus: StreamCorpus) -> None:
    assert next(TokenStream(corpus, block_size=8)).base is None


def test_load_state_dict_rejects_other_and_damaged_states(tmp_path: Path, corpus: StreamCorpus) -> None:
    stream = TokenStream(corpus, block_size=8, seed=1)
    next(stream)
    state = stream.state_dict()
    assert len(json.dumps(state)) < 600
    others = {
        "seed": TokenStream(corpus, block_size=8, seed=2),
        "block_size": TokenStream(corpus, block_size=9, seed=1),
        "world_size": TokenStream(corpus, block_size=8, seed=1, world_size=2),
        "recipe, files or tokenizer": TokenStream(
            open_files(write_parquet(tmp_path / "y.parquet", ["y"])), block_size=8, seed=1
        ),
    }
    for name, other in others.items():
        with pytest.raises(MisuseError, match=name) as caught:
            other.load_state_dict(state)
        assert_one_line(str(caught.value))
    for damaged in (
        {},
        {**state, "version": 2},
        {**state, "drawn": -1},
        {**state, "cursor": {}},
        {**state, "cursor": "x"},
        {**state, "group": None},
        {**state, "group": "1"},
        [],
    ):
        with pytest.raises(FolioError) as caught:
            stream.load_state_dict(damaged)  # type: ignore[arg-type]
        assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    "change",
    [
        {"group": 1 << 64},
        {"group": 0},
        {"drawn": 21},
        {"drawn": True},
        {"cursor": {"epoch": 2}},
        {"cursor": {"source": 2}},
        {"cursor": {"span": 1 << 63}},
        {"cursor": {"span": 10_000}},
        {"cursor": {"row": 10**30}},
        {"cursor": {"row": 10_000}},
        {"cursor": {"number": 1 << 63}},
        {"cursor": {"offset": 0}},
        {"cursor": {"offset": 10_000}},
    ],
)
def test_load_state_dict_rejects_positions_that_do_not_exist(corpus: StreamCorpus, change: dict[str, Any]) -> None:
    def fresh() -> TokenStream:
        return TokenStream(corpus, block_size=8, stream_buffer=20, epochs=2, tail="pad")

    stream = fresh()
    for _ in range(330):
        next(stream)
    state: dict[str, Any] = {**stream.state_dict()}
    assert state["cursor"]["row"] > 0 and state["cursor"]["span"] > 0 and state["drawn"] == 10
    cursor = {"cursor": state["cursor"] | change["cursor"]} if "cursor" in change else {}
    with pytest.raises(FolioError, match="state of the stream") as caught:
        again = fresh()
        again.load_state_dict(state | change | cursor)
        list(again)
    assert_one_line(str(caught.value))


def test_load_state_dict_shortens_values_of_other_streams(corpus: StreamCorpus) -> None:
    stream = TokenStream(corpus, block_size=8)
    state = stream.state_dict()
    long = "\u202e\n" * 1000
    for damaged in ({**state, "version": long}, {**state, "stream": {**state["stream"], "seed": long}}):
        with pytest.raises(MisuseError) as caught:
            stream.load_state_dict(damaged)
        assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    "arguments",
    [
        {"block_size": 0},
        {"block_size": 8.5},
        {"block_size": "8"},
        {"rank": 1},
        {"worker": -1},
        {"stream_buffer": -1},
        {"split": "test"},
        {"tail": "keep"},
        {"epochs": 0},
        {"seed": -1},
        {"seed": "a"},
    ],
)
def test_stream_rejects_arguments_out_of_range(corpus: StreamCorpus, arguments: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match=next(iter(arguments))) as caught:
        TokenStream(corpus, **{"block_size": 4, **arguments})
    assert_one_line(str(caught.value))


def test_stream_rejects_text_shorter_than_a_block(tmp_path: Path) -> None:
    corpus = open_files(write_parquet(tmp_path / "x.parquet", make_texts(9)))
    whole = len(b"".join(read_documents(TokenStream(corpus, block_size=1, tail="pad", stream_buffer=0))))
    assert whole > 9
    for share, cure in (
        ({}, "smaller block_size$"),
        ({"world_size": 2}, "smaller block_size or fewer processes and workers$"),
    ):
        stream = TokenStream(corpus, block_size=10**6, **share)
        for _ in range(2):
            with pytest.raises(
                FolioError,
                match=f"the train split of own has [0-9]+ tokens .*, too few for a block of 1,000,001; .* {cure}",
            ) as caught:
                next(stream)
            assert_one_line(str(caught.value))
    with pytest.raises(FolioError, match="the val split of own has .* or a larger val_fraction"):
        validation_blocks(corpus, block_size=10**6, eval_tokens=None)


def test_padding_requires_a_token(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no token to pad with"):
        TokenStream(open_files(write_parquet(tmp_path / "x.parquet", ["x"]), eot="none"), block_size=4, tail="pad")


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 800)) for _ in range(400)]
    with pq.ParquetWriter(tmp_path / "x.parquet", pa.schema([("text", pa.string())])) as writer:
        for _ in range(30):
            writer.write_table(pa.table({"text": texts}))
    code = f"""
import resource
from preprocess.stream import TokenStream, open_corpus
corpus = open_corpus(None, inputs=({str(tmp_path / "x.parquet")!r},), tokenizer="byte", dedup=False, split="threshold")
stream = TokenStream(corpus, block_size=255, stream_buffer=1000)
peaks = []
for block in stream:
    if stream.num_blocks == 20_000:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(stream.num_text_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peaks[0])
"""
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(out[0]) > 40e6 and int(out[1]) < 15_000, out  # kB: memory stops growing in the first tenth


@pytest.mark.parametrize(
    ("num_words", "block_size", "max_bytes_per_byte"),
    [(400_000, 1_000, 10), (4_000, 1, 40)],  # with blocks of 2 tokens, a cursor for each would be hundreds
)
def test_memory_is_bounded_by_one_document(
    tmp_path: Path, num_words: int, block_size: int, max_bytes_per_byte: int
) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"{i} word " * num_words)
    corpus = open_files(tmp_path, val_fraction=1e-9)
    stream = TokenStream(corpus, block_size=block_size, stream_buffer=0)
    tracemalloc.start()
    for _ in stream:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.num_documents == 4 and peak < max_bytes_per_byte * 7 * num_words, peak


def test_workers_of_a_loader_that_read_the_same_documents_are_reported(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    path, log = write_parquet(tmp_path / "x.parquet", make_texts(20)), tmp_path / "log"

    def write_line(line: str) -> None:
        with open(log, "a") as file:  # of several processes
            file.write(f"{line}\n")

    class NumBlocks(IterableDataset):
        """Yields the number of blocks of a worker's share, and of a stream without one."""

        def __iter__(self) -> Iterator[tuple[int, int]]:
            info, corpus = get_worker_info(), open_files(path, log=write_line)
            share = {"worker": info.id, "num_workers": info.num_workers}
            shared = len(list(TokenStream(corpus, block_size=15, **share)))
            write_line(f"end of the share of worker {info.id}")
            yield shared, len(list(TokenStream(corpus, block_size=15)))

    loader = DataLoader(NumBlocks(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    (share0, all0), (share1, all1) = loader
    assert all0 == all1 and share0 < all0 and share1 < all1
    lines = sorted(log.read_text().splitlines())
    assert len(lines) == 4 and lines[2].startswith("end of the share")
    assert lines[0].startswith("each of the 2 workers of the DataLoader reads all documents; pass worker=")


def test_load_state_dict_warns_if_files_have_other_modification_times(tmp_path: Path) -> None:
    path, lines = write_parquet(tmp_path / "x.parquet", make_texts(60)), list[str]()
    stream = TokenStream(open_files(path), block_size=15)
    next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    TokenStream(open_files(path, log=lines.append), block_size=15).load_state_dict(state)
    assert not lines
    os.utime(path, ns=(0, 1))
    other = TokenStream(open_files(path, log=lines.append), block_size=15)
    other.load_state_dict(state)
    assert len(lines) == 1 and "have other modification times or versions than when the state was saved" in lines[0]
    del state["times_sha256"]  # as in states of earlier versions
    other.load_state_dict(state)
    assert len(lines) == 1
