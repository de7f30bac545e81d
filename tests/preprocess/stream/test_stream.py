"""Streams: every token once, any place to go on from, the build's tokens, and bad luck that loses nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.build.build import build
from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import Build, read_manifest
from preprocess.stream import Retries, StreamCorpus, TokenStream, batches, open_corpus, validation_blocks
from preprocess.tokenizers import load_tokenizer
from tests.conftest import ROOT, assert_one_line

EOT = 256  # of the byte tokenizer
WORDS = ["sea", "stone", "Привет", "light", "日本", "x"]


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, rng.integers(1, 40))) for i in range(count)]


def write_parquet(path: Path, texts: list[str], *, row_group_size: int = 7, **columns: list[Any]) -> Path:
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=row_group_size)
    return path


def opened(*paths: Path, tell: Callable[[str], None] | None = None, **overrides: Any) -> StreamCorpus:
    given = {"tokenizer": "byte", "dedup": False, "split": "threshold", "val_fraction": 0.2, "clean": (), **overrides}
    return open_corpus(None, inputs=tuple(map(str, paths)), tell=tell or (lambda line: None), **given)


def documents_in(stream: TokenStream) -> list[bytes]:
    """What the blocks of a stream with tail 'pad' hold, joined and cut at the end-of-text ids."""
    tokens = np.concatenate([np.empty(0, stream.dtype), *stream])
    tokens = tokens[: len(tokens) - stream.num_padded]
    assert not len(tokens) or tokens[-1] == EOT
    ends = np.flatnonzero(tokens == EOT)
    return [
        tokens[a + 1 : b].astype(np.uint8).tobytes()
        for a, b in zip([-1, *ends[:-1].tolist()], ends.tolist(), strict=True)
    ]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 300)
    monkeypatch.setattr("preprocess.stream.encoding.CHUNK_BYTES", 100)


@pytest.fixture
def small_reads(small_pieces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.readers.decompress.BLOCK_BYTES", 200)
    monkeypatch.setattr("preprocess.readers.json.HEAD_BYTES", 200)


@pytest.fixture
def corpus(tmp_path: Path, small_pieces: None) -> StreamCorpus:
    """Two files of several spans."""
    return opened(*(write_parquet(tmp_path / f"{i}.parquet", some_texts(60, seed=i)) for i in range(2)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), max_size=30),
    block_size=st.integers(1, 70),
    world_size=st.integers(1, 3),
    num_workers=st.integers(1, 3),
    val_fraction=st.sampled_from([0.001, 0.4]),
    seed=st.integers(0, 3),
)
def test_every_token_lies_in_one_block_and_every_document_in_one_share(
    tmp_path: Path,
    small_pieces: None,
    texts: list[str],
    block_size: int,
    world_size: int,
    num_workers: int,
    val_fraction: float,
    seed: int,
) -> None:
    texts = ["the first", *texts]
    whole = opened(write_parquet(tmp_path / "x.parquet", texts, row_group_size=3), val_fraction=val_fraction)
    found: dict[str, list[bytes]] = {}
    for split in ("train", "val"):
        arguments = {"block_size": block_size, "split": split, "tail": "pad", "stream_buffer": 0, "seed": seed}
        try:
            found[split] = documents_in(TokenStream(whole, **arguments))
        except FolioError as e:
            assert "no document is left" in str(e)
            found[split] = []
        shared: list[bytes] = []
        for rank in range(world_size):
            for worker in range(num_workers):
                shares = {"rank": rank, "world_size": world_size, "worker": worker, "num_workers": num_workers}
                try:
                    part = documents_in(TokenStream(whole, **arguments, **shares))
                except FolioError as e:
                    assert "no document is left" in str(e)
                    continue
                positions = [found[split].index(document) for document in part]
                assert positions == sorted(positions) or len(set(texts)) < len(texts)
                shared += part
        assert Counter(shared) == Counter(found[split])
    assert Counter(found["train"] + found["val"]) == Counter(text.encode() for text in texts if text)


def test_documents_come_in_their_order(tmp_path: Path, small_pieces: None) -> None:
    texts = some_texts(50)
    corpus = opened(write_parquet(tmp_path / "x.parquet", texts))
    found = [
        documents_in(TokenStream(corpus, block_size=16, split=split, tail="pad", stream_buffer=0))
        for split in ("train", "val")
    ]
    assert sorted(b"".join(found[0] + found[1])) == sorted("".join(texts).encode())
    assert [text.encode() for text in texts if text.encode() in found[0]] == found[0] and len(found[1]) in range(3, 20)
    dropped = list(TokenStream(corpus, block_size=16, stream_buffer=0))
    padded = list(TokenStream(corpus, block_size=16, stream_buffer=0, tail="pad"))
    assert np.array_equal(dropped, padded[:-1]) and all(
        len(block) == 17 and block.dtype == np.uint16 for block in padded
    )


def test_shares_are_even_and_take_both_sides_of_pairs(tmp_path: Path) -> None:
    corpus = opened(
        write_parquet(tmp_path / "x.parquet", [f"{i % 2}" for i in range(400)], row_group_size=50), val_fraction=1e-9
    )
    shares = [documents_in(TokenStream(corpus, block_size=9, tail="pad", rank=rank, world_size=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [200, 200] and all(60 < share.count(b"0") < 140 for share in shares)


FORMATS = {
    "parquet": lambda path, texts: write_parquet(path.with_suffix(".parquet"), texts),
    "jsonl": lambda path, texts: _written(
        path.with_suffix(".jsonl"), "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    ),
    "gzip": lambda path, texts: _written(path.with_suffix(".txt.gz"), gzip.compress("\n".join(texts).encode())),
    "lines": lambda path, texts: _written(path.with_suffix(".txt"), "\n".join(texts).encode()),
    "csv": lambda path, texts: _written(
        path.with_suffix(".csv"), ("text\n" + "\n".join(f'"{t}"' for t in texts)).encode()
    ),
}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("stream_buffer", "epochs"), [(0, 2), (8, 1), (50, 2), (10_000, 1)])
def test_a_stream_goes_on_with_the_very_next_block(
    tmp_path: Path, small_pieces: None, form: str, stream_buffer: int, epochs: int
) -> None:  # fmt: skip
    document = {"document": "line"} if form in ("lines", "gzip") else {}
    corpus = opened(*(FORMATS[form](tmp_path / str(i), some_texts(40, seed=i)) for i in range(2)), **document)

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


def test_many_restarts_in_a_row_change_nothing(corpus: StreamCorpus) -> None:
    wanted = list(TokenStream(corpus, block_size=8, stream_buffer=20, epochs=2))
    state, found = TokenStream(corpus, block_size=8, stream_buffer=20, epochs=2).state_dict(), []
    while True:
        stream = TokenStream(corpus, block_size=8, stream_buffer=20, epochs=2)
        stream.load_state_dict(state)
        taken = [block for _, block in zip(range(33), stream, strict=False)]
        if not taken:
            break
        found += taken
        state = stream.state_dict()
    assert np.array_equal(found, wanted)


def test_the_order_is_a_function_of_the_seed(corpus: StreamCorpus) -> None:
    plain, one, same, other = (
        [block.tobytes() for block in TokenStream(corpus, block_size=40, stream_buffer=n, seed=seed)]
        for n, seed in ((0, 1), (40, 1), (40, 1), (40, 2))
    )
    assert one == same != other and one != plain and Counter(one) == Counter(plain) == Counter(other)
    assert len(set(plain)) == len(plain)
    places = [plain.index(block) for block in one]
    assert (
        all(abs(place - i) < 40 for i, place in enumerate(places))
        and sum(a != b for a, b in enumerate(places)) > len(one) * 0.9
    )
    first, second = places[:40], [place - 40 for place in places[40:80]]
    assert first != second  # each group has an order of its own


def test_an_order_is_kept_from_version_to_version(corpus: StreamCorpus) -> None:
    blocks = TokenStream(corpus, block_size=8, stream_buffer=40, seed=1, rank=1, world_size=2)
    assert [bytes(next(blocks).astype(np.uint8)[:4]) for _ in range(5)] == [
        b"\x97\xa5\xe6\x9c",
        b"\xd0\xb5\xd1\x82",
        b"\x82 \xe6\x97",
        b"\x97\xa5\xe6\x9c",
        b" sea",
    ]


@pytest.mark.parametrize("group", [{}, {"group_column": "group"}, {"group_by": "source"}, {"group_by": "position"}])
def test_a_stream_gives_the_tokens_of_the_build(tmp_path: Path, group: dict[str, str]) -> None:
    paths = []
    for i in range(8):
        texts = [*some_texts(75, seed=i), "", "\0"]
        paths.append(
            str(
                write_parquet(
                    tmp_path / f"{1900 + i} {i}.parquet", texts, group=[f"g{k // 3}" for k in range(len(texts))]
                )
            )
        )
    recipe = load_recipe(
        None, inputs=tuple(paths), tokenizer="gpt2", dedup=False, split="threshold", val_fraction=0.3, seed=3, city="Rome",
        name_pattern=r"(?P<year>\d+) (?P<author>\d)", min_characters=5, **group,
    )  # fmt: skip
    build(recipe, tmp_path / "b", name="b", replace=False, progress=Progress(quiet=True))
    made, corpus = Build(tmp_path / "b"), open_corpus(recipe, tell=lambda line: None)
    assert (
        corpus.vocab_size == made.vocab_size and corpus.manifest()["special_tokens"] == made.manifest["special_tokens"]
    )
    for split in ("train", "val"):
        stream = TokenStream(corpus, block_size=64, split=split, stream_buffer=0, tail="pad")
        tokens = np.concatenate(list(stream))
        tokens = tokens[: len(tokens) - stream.num_padded]
        assert np.array_equal(tokens, np.concatenate([shard.tokens for shard in made.shards(split)]))
        assert tokens.dtype == made.dtype
        entry = made.manifest["splits"][split]
        assert (stream.num_documents, stream.num_tokens, stream.num_text_bytes) == (
            entry["documents"],
            entry["tokens"],
            entry["text_bytes"],
        )


@pytest.mark.parametrize(
    "given",
    [
        {"split": "contiguous", "document": "passage", "passage_characters": 50, "inputs": "*.txt"},
        {"split": "given", "split_column": "side", "inputs": "*.jsonl", "lang": "en"},
    ],
)
def test_sides_that_are_given_are_those_of_the_build(tmp_path: Path, given: dict[str, Any]) -> None:
    texts = some_texts(90)
    _written(tmp_path / "x.txt", "\n\n".join(texts).encode())
    sides = ("train", "val", "test")
    _written(
        tmp_path / "x.jsonl",
        "".join(json.dumps({"text": t, "side": sides[i % 3]}) + "\n" for i, t in enumerate(texts)).encode(),
    )
    recipe = load_recipe(None, tokenizer="byte", dedup=False, **{**given, "inputs": (str(tmp_path / given["inputs"]),)})
    build(recipe, tmp_path / "b", name="b", replace=False, progress=Progress(quiet=True))
    made = Build(tmp_path / "b")
    for split in ("train", "val"):
        found = documents_in(TokenStream(open_corpus(recipe), block_size=7, split=split, stream_buffer=0, tail="pad"))
        assert found == [
            made.document(split, i)[:-1].astype(np.uint8).tobytes()
            for i in range(made.manifest["splits"][split]["documents"])
        ]


def test_files_of_the_other_side_are_not_opened(tmp_path: Path) -> None:
    write_parquet(tmp_path / "validation-0.parquet", ["validates"])
    (tmp_path / "train-0.parquet").write_bytes(b"no Parquet")
    write_parquet(tmp_path / "test-0.parquet", ["tests"])
    corpus = open_corpus("wikitext-103", inputs=(str(tmp_path / "*.parquet"),), tokenizer="byte")
    assert documents_in(TokenStream(corpus, block_size=4, split="val", tail="pad")) == [b"validates"]


def test_a_cap_counts_the_documents_of_both_sides(tmp_path: Path) -> None:
    for name in ("train", "test", "validation"):
        write_parquet(tmp_path / f"{name}-0.parquet", [f"{name} {i}" for i in range(3)])
    corpus = open_corpus("wikitext-103", inputs=(str(tmp_path),), tokenizer="byte", max_documents=4)
    sides = {
        split: documents_in(TokenStream(corpus, block_size=4, split=split, stream_buffer=0, tail="pad"))
        for split in ("train", "val")
    }
    assert sides == {"train": [b"train 0", b"train 1", b"train 2"], "val": [b"validation 0"]}


def test_a_block_keeps_no_other_in_memory(corpus: StreamCorpus) -> None:
    assert next(TokenStream(corpus, block_size=8)).base is None


def test_what_is_given_for_testing_trains_where_nothing_else_does(tmp_path: Path) -> None:
    for name in ("validation", "test"):
        write_parquet(tmp_path / f"{name}-0.parquet", [name])
    corpus = open_corpus("wikitext-103", inputs=(str(tmp_path),), tokenizer="byte")
    assert documents_in(TokenStream(corpus, block_size=4, tail="pad")) == [b"test"]


def test_wikitext_in_batches(tmp_path: Path) -> None:
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


def test_synth_with_its_template_in_english_and_capped(tmp_path: Path) -> None:
    columns = {
        name: [f"{name} {i}" for i in range(300)] for name in ("query", "synthetic_reasoning", "synthetic_answer")
    }
    columns["language"] = ["en" if i % 3 else "fr" for i in range(300)]
    pq.write_table(pa.table(columns), tmp_path / "synth.parquet", row_group_size=40)
    notes: list[str] = []
    corpus = open_corpus(
        "synth", inputs=(str(tmp_path / "synth.parquet"),), max_documents=50, val_fraction=0.1, tell=notes.append
    )
    for note, word in zip(notes, ("equal ones", "by threshold", "the first 50"), strict=True):
        assert word in note
        assert_one_line(note)
    texts = []
    for split in ("train", "val"):
        stream = TokenStream(corpus, block_size=64, split=split, stream_buffer=0, tail="pad")
        tokens = np.concatenate(list(stream))
        parts = corpus.tokenizer.decode(tokens[: len(tokens) - stream.num_padded]).split("<|endoftext|>")
        texts += [part for part in parts if part]
    wanted = [
        f"Q: query {i}\n\nReasoning:\nsynthetic_reasoning {i}\n\nA: synthetic_answer {i}" for i in range(300) if i % 3
    ][:50]
    assert "".join(texts).count("Q: ") == 50 and all(text in "".join(texts) for text in wanted)


def test_the_documentation_runs_as_it_stands(tmp_path: Path) -> None:
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


class Flaky:
    """A real file whose reading fails once at each of some places."""

    def __init__(self, path: str, left: set[int]) -> None:
        self._file, self._left = io.FileIO(path), left

    def read(self, size: int = -1) -> bytes:
        begin = self._file.tell()
        for place in sorted(self._left):
            if begin <= place < begin + size:
                self._left.remove(place)
                raise OSError(5, "Input/output error")
        return self._file.read(size)

    def __enter__(self) -> Flaky:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_flaky_file_loses_nothing(tmp_path: Path, small_reads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, lines = some_texts(80), []
    path = _written(tmp_path / "x.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts).encode())
    corpus = opened(path, tell=lines.append)
    wanted = list(TokenStream(corpus, block_size=16, stream_buffer=9))
    size = path.stat().st_size
    left = {0, 1, 2, size // 3, size // 2, size // 2 + 1, size - 1}
    monkeypatch.setattr("preprocess.readers.decompress.open", lambda path, *_, **__: Flaky(path, left), raising=False)
    found = list(TokenStream(corpus, block_size=16, stream_buffer=9, retries=Retries(tries=4, backoff_s=0.001)))
    assert np.array_equal(found, wanted) and not left and len(lines) == 7
    for line in lines:
        assert str(path) in line and "Input/output error" in line
        assert_one_line(line)


def test_a_flaky_parquet_file_loses_nothing(
    tmp_path: Path, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = opened(write_parquet(tmp_path / "x.parquet", some_texts(300), row_group_size=30))
    wanted = list(TokenStream(corpus, block_size=16, stream_buffer=9))
    size = (tmp_path / "x.parquet").stat().st_size
    left, really = {10, size // 3, size // 2, size - 20}, pq.ParquetFile
    monkeypatch.setattr(
        pq, "ParquetFile", lambda path, **options: really(pa.PythonFile(Flaky(path, left), "r"), **options)
    )
    found = list(TokenStream(corpus, block_size=16, stream_buffer=9, retries=Retries(backoff_s=0.001)))
    assert np.array_equal(found, wanted) and not left


def test_a_stream_that_failed_can_be_asked_again(
    tmp_path: Path, small_reads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _written(tmp_path / "x.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in some_texts(80)).encode())
    corpus = opened(path)
    wanted = list(TokenStream(corpus, block_size=16, stream_buffer=9))
    places = [path.stat().st_size // 2] * 3

    class Broken(Flaky):
        def read(self, size: int = -1) -> bytes:
            if places and self._file.tell() <= places[0] < self._file.tell() + size:
                raise OSError(5, f"Input/output error {places.pop()}")
            return self._file.read(size)

    monkeypatch.setattr("preprocess.readers.decompress.open", lambda path, *_, **__: Broken(path, set()), raising=False)
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
    assert np.array_equal(found, wanted) and len(errors) == 1 and "in 3 tries" in errors[0] and state["group"] > 0
    assert_one_line(errors[0])


def test_a_damaged_file_is_told_and_not_tried_for_ever(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["a good one"] * 20)
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    stream = TokenStream(opened(tmp_path), block_size=16, stream_buffer=0, retries=Retries(tries=2, backoff_s=0.001))
    next(stream)  # nobody looks at a file before its turn
    with pytest.raises(FolioError, match="cannot be read as Parquet"):
        list(stream)
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(FolioError, match="went away"):
        list(stream)


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
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
    assert int(out[0]) > 40e6 and int(out[1]) < 15_000, out  # kB: a tenth into the stream all there will be is there


def test_a_vocabulary_is_saved_as_a_run_wants_it(tmp_path: Path) -> None:
    corpus = opened(write_parquet(tmp_path / "x.parquet", ["a"]), tokenizer="gpt2", author="Ann Lee")
    corpus.save_vocabulary(tmp_path / "vocabulary")
    manifest = read_manifest(tmp_path / "vocabulary")
    tokenizer = load_tokenizer(tmp_path / "vocabulary", manifest)
    assert (
        manifest["vocab_size"] == corpus.vocab_size == 50_258
        and manifest["special_tokens"]["<author_Ann_Lee>"] == 50_257
    )
    assert tokenizer.decode(tokenizer.encode_text("so it is")) == "so it is"


def test_states_of_other_streams_are_refused(tmp_path: Path, corpus: StreamCorpus) -> None:
    stream = TokenStream(corpus, block_size=8, seed=1)
    next(stream)
    state = stream.state_dict()
    assert len(json.dumps(state)) < 600
    others = {
        "seed": TokenStream(corpus, block_size=8, seed=2),
        "block_size": TokenStream(corpus, block_size=9, seed=1),
        "world_size": TokenStream(corpus, block_size=8, seed=1, world_size=2),
        "recipe, files or tokenizer": TokenStream(
            opened(write_parquet(tmp_path / "y.parquet", ["y"])), block_size=8, seed=1
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
    ("overrides", "wanted"),
    [
        ({"tokenizer": "sentencepiece"}, "preprocess tokenizer train"),
        ({"tokenizer": "char"}, "preprocess tokenizer train"),
        ({"author_column": "text"}, "--no-authors"),
        ({"author_column": "absent", "authors": False}, "no column 'absent'"),
        ({"where": 'text == "never"'}, "no document is left"),
        (
            {"tokenizer": "nonsense"},
            "no tokenizer is called 'nonsense'; a file is named by its path, such as ./tokenizer.json; ",
        ),
        ({"tokeniser": "byte"}, "did you mean 'tokenizer'"),
        ({"val_fraction": "0.1"}, "val_fraction is '0.1', wanted float"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(tmp_path: Path, overrides: dict[str, Any], wanted: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", some_texts(10))
    with pytest.raises(FolioError, match=wanted) as caught:
        next(TokenStream(opened(path, **overrides), block_size=4, epochs=None))
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
def test_arguments_out_of_range_are_refused(corpus: StreamCorpus, arguments: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match=next(iter(arguments))) as caught:
        TokenStream(corpus, **{"block_size": 4, **arguments})
    assert_one_line(str(caught.value))


def test_engines_that_differ_end_a_stream_and_the_reference_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "x.parquet", some_texts(40))
    fast, reference = opened(path, tokenizer="gpt2"), opened(path, tokenizer="gpt2", use_reference=True)
    assert (fast.tokenizer.engine, reference.tokenizer.engine) == ("gigatoken", "tiktoken")
    wanted = list(TokenStream(fast, block_size=8))
    assert np.array_equal(list(TokenStream(reference, block_size=8)), wanted)
    engine = fast.tokenizer._fast  # type: ignore[attr-defined]
    really = engine.encode
    monkeypatch.setattr(engine, "encode", lambda texts: (really(texts)[0] ^ 1, really(texts)[1]))
    with pytest.raises(
        FolioError,
        match="gigatoken differs from tiktoken .* begin anew with .*use_reference=True.*, or train on a build",
    ) as caught:
        list(TokenStream(fast, block_size=8))
    assert_one_line(str(caught.value))


def test_a_recipe_is_sent_to_another_process_not_an_open_corpus(corpus: StreamCorpus) -> None:
    stream = TokenStream(corpus, block_size=8)
    for unsendable in (corpus, stream):
        with pytest.raises(MisuseError, match="send its recipe, and open the stream there") as caught:
            ForkingPickler.dumps(unsendable)
        assert_one_line(str(caught.value))
    again = TokenStream(ForkingPickler.loads(ForkingPickler.dumps(corpus.recipe)), block_size=8)
    assert np.array_equal(list(again), list(stream))


def test_a_file_that_changes_must_be_as_it_was(tmp_path: Path) -> None:
    path = _written(tmp_path / "x.txt", "\n".join(some_texts(20)).encode())
    corpus = opened(path, document="line")
    size = path.stat().st_size
    with open(path, "a") as file:
        file.write("more\n")
    wanted = rf"x.txt changed while it was read \({size:,} bytes, now {size + 5:,}\); put it back as it was and go on from the last state"
    with pytest.raises(FolioError, match=wanted) as caught:
        next(TokenStream(corpus, block_size=8))
    assert_one_line(str(caught.value))


def test_inputs_that_are_missing_are_told_where_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('inputs = ["gone.txt"]\n')
    (tmp_path / "none.toml").write_text('format = "text"\n')
    for corpus, inputs, wanted in (
        (str(tmp_path / "mine.toml"), {}, rf"mine.toml: inputs {tmp_path}/gone.txt matches no file"),
        (tmp_path / "mine.toml", {"inputs": ("other.txt",)}, r"^inputs other.txt matches no file"),
        (
            str(tmp_path / "none.toml"),
            {},
            r"none names no files to read; in a recipe file write inputs = \['data/\*.parquet'\] with its files",
        ),
        (
            "wikitext-103",
            {},
            "in a copy of preprocess/recipes/wikitext-103.toml write inputs = .* with the Parquet files of ",
        ),
        (None, {}, r"in Python pass inputs=\('data/\*.parquet',\)"),
    ):
        with pytest.raises(MisuseError, match=wanted) as caught:
            open_corpus(corpus, **inputs)
        assert "--input" not in str(caught.value)
        assert_one_line(str(caught.value))


def test_inputs_are_no_single_string(tmp_path: Path) -> None:
    """Taken for a list of letters, the first of them would name all of the disk."""
    path = str(write_parquet(tmp_path / "x.parquet", ["x"]))
    with pytest.raises(MisuseError, match=r"inputs is '.*x.parquet', wanted tuple\[str") as caught:
        open_corpus(None, inputs=path, tokenizer="byte")
    assert_one_line(str(caught.value))


def test_settings_are_refused_of_a_recipe_as_of_its_name(tmp_path: Path) -> None:
    inputs = (str(write_parquet(tmp_path / "x.parquet", ["x"])),)
    for corpus in ("synth", load_recipe("synth")):
        with pytest.raises(MisuseError, match="text_column has no effect on synth"):
            open_corpus(corpus, inputs=inputs, text_column="text")


def test_all_that_should_be_heard_goes_to_tell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "x.parquet", ["x"])
    (tmp_path / "notes.pdf").touch()
    lines: list[str] = []
    opened(tmp_path, tell=lines.append, group_by="position", dedup=True)
    for line, word in zip(
        lines, ("files were passed over", "equal ones are not taken out", "both sides of the split"), strict=True
    ):
        assert word in line
        assert_one_line(line)
    assert capfd.readouterr().err == ""


def test_a_source_smaller_than_a_block_is_told(tmp_path: Path) -> None:
    corpus = opened(write_parquet(tmp_path / "x.parquet", some_texts(9)))
    whole = len(b"".join(documents_in(TokenStream(corpus, block_size=1, tail="pad", stream_buffer=0))))
    assert whole > 9
    for share, cure in (
        ({}, "smaller block_size$"),
        ({"world_size": 2}, "smaller block_size or fewer processes and workers$"),
    ):
        stream = TokenStream(corpus, block_size=10**6, **share)
        for _ in range(2):
            with pytest.raises(
                FolioError,
                match=f"the train side of own has [0-9]+ tokens .*, too few for a block of 1,000,001; .* {cure}",
            ) as caught:
                next(stream)
            assert_one_line(str(caught.value))
    with pytest.raises(FolioError, match="the val side of own has .* or a larger val_fraction"):
        validation_blocks(corpus, block_size=10**6, eval_tokens=None)


def test_padding_wants_a_token(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no token to pad with"):
        TokenStream(opened(write_parquet(tmp_path / "x.parquet", ["x"]), eot="none"), block_size=4, tail="pad")


def test_what_was_not_taken_as_it_is_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    path = _written(tmp_path / "x.jsonl", b'{"text": "good enough"}\nbad\n{"text": null}\n' * 3)
    list(TokenStream(opened(path, tell=lines.append), block_size=4))
    assert lines == [f"{path}: some documents were not taken as they are: 3 malformed, 3 null text"]


def test_a_recipe_may_be_streamed_by_itself(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", some_texts(5))
    (tmp_path / "mine.toml").write_text(
        'inputs = ["x.parquet"]\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\n'
    )
    for path in (tmp_path / "mine.toml", str(tmp_path / "mine.toml")):
        assert len(next(TokenStream(path, block_size=4))) == 5
    recipe = Recipe(
        corpus="own", inputs=(str(tmp_path / "x.parquet"),), tokenizer="byte", split="threshold", dedup=False
    )
    assert len(next(TokenStream(recipe, block_size=4))) == 5


def test_the_bench_runs(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "bench/stream.py", "--smoke"], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}"},
    ).stdout  # fmt: skip
    assert "| Folio" in out and "tokens/s" in out
