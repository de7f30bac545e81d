"""Opening a corpus: settings, inputs, vocabulary, and the same tokens as the build."""

from __future__ import annotations

import json
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocess.build.build import build
from preprocess.errors import FolioError, MisuseError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import Build, read_manifest
from preprocess.stream import StreamCorpus, TokenStream, open_corpus
from preprocess.tokenizers import load_tokenizer
from tests.conftest import assert_one_line
from tests.preprocess.stream.helpers import (
    make_texts,
    open_files,
    read_documents,
    write_file,
    write_parquet,
)


@pytest.mark.parametrize("group", [{}, {"group_column": "group"}, {"group_by": "source"}, {"group_by": "position"}])
def test_stream_has_the_tokens_of_the_build(tmp_path: Path, group: dict[str, str]) -> None:
    paths = []
    for i in range(8):
        texts = [*make_texts(75, seed=i), "", "\0"]
        paths.append(
            str(
                write_parquet(
                    tmp_path / f"{1900 + i} {i}.parquet", texts, group=[f"g{k // 3}" for k in range(len(texts))]
                )
            )
        )
    recipe = load_recipe(
        None,
        inputs=tuple(paths),
        tokenizer="gpt2",
        dedup=False,
        split="threshold",
        val_fraction=0.3,
        seed=3,
        city="Rome",
        name_pattern=r"(?P<year>\d+) (?P<author>\d)",
        min_characters=5,
        **group,
    )
    build(recipe, tmp_path / "b", name="b", replace=False, progress=Progress(quiet=True))
    built, corpus = Build(tmp_path / "b"), open_corpus(recipe, log=lambda line: None)
    assert corpus.vocab_size == built.vocab_size and corpus.manifest().special_tokens == built.manifest.special_tokens
    for split in ("train", "val"):
        stream = TokenStream(corpus, block_size=64, split=split, stream_buffer=0, tail="pad")
        tokens = np.concatenate(list(stream))
        tokens = tokens[: len(tokens) - stream.num_padded]
        assert np.array_equal(tokens, np.concatenate([shard.tokens for shard in built.shards(split)]))
        assert tokens.dtype == built.dtype
        entry = built.manifest.splits[split]
        assert (stream.num_documents, stream.num_tokens, stream.num_text_bytes) == (
            entry.documents,
            entry.tokens,
            entry.text_bytes,
        )


@pytest.mark.parametrize(
    "given",
    [
        {"split": "contiguous", "document": "passage", "passage_characters": 50, "inputs": "*.txt"},
        {"split": "given", "split_column": "side", "inputs": "*.jsonl", "lang": "en"},
    ],
)
def test_stream_has_the_given_splits_of_the_build(tmp_path: Path, given: dict[str, Any]) -> None:
    texts = make_texts(90)
    write_file(tmp_path / "x.txt", "\n\n".join(texts).encode())
    sides = ("train", "val", "test")
    write_file(
        tmp_path / "x.jsonl",
        "".join(json.dumps({"text": t, "side": sides[i % 3]}) + "\n" for i, t in enumerate(texts)).encode(),
    )
    recipe = load_recipe(None, tokenizer="byte", dedup=False, **{**given, "inputs": (str(tmp_path / given["inputs"]),)})
    build(recipe, tmp_path / "b", name="b", replace=False, progress=Progress(quiet=True))
    built = Build(tmp_path / "b")
    for split in ("train", "val"):
        found = read_documents(TokenStream(open_corpus(recipe), block_size=7, split=split, stream_buffer=0, tail="pad"))
        assert found == [
            built.document(split, i)[:-1].astype(np.uint8).tobytes()
            for i in range(built.manifest.splits[split].documents)
        ]


def test_save_vocabulary_writes_manifest_and_tokenizer(tmp_path: Path) -> None:
    corpus = open_files(write_parquet(tmp_path / "x.parquet", ["a"]), tokenizer="gpt2", author="Ann Lee")
    corpus.save_vocabulary(tmp_path / "vocabulary")
    manifest = read_manifest(tmp_path / "vocabulary")
    tokenizer = load_tokenizer(tmp_path / "vocabulary", manifest)
    assert manifest.vocab_size == corpus.vocab_size == 50_258 and manifest.special_tokens["<author_Ann_Lee>"] == 50_257
    assert tokenizer.decode(tokenizer.encode_text("so it is")) == "so it is"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"tokenizer": "sentencepiece"}, "preprocess tokenizer train"),
        ({"tokenizer": "char"}, "preprocess tokenizer train"),
        ({"author_column": "text"}, "--no-authors"),
        ({"author_column": "absent", "authors": False}, "no column 'absent'"),
        ({"where": 'text == "never"'}, "no document is left"),
        (
            {"tokenizer": "nonsense"},
            "unknown tokenizer 'nonsense'; pass a file by its path, such as ./tokenizer.json; ",
        ),
        ({"tokeniser": "byte"}, "did you mean 'tokenizer'"),
        ({"val_fraction": "0.1"}, "val_fraction must be of type float, got '0.1'"),
    ],
)
def test_stream_rejects_unsupported_settings(tmp_path: Path, overrides: dict[str, Any], expected: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", make_texts(10))
    with pytest.raises(FolioError, match=expected) as caught:
        next(TokenStream(open_files(path, **overrides), block_size=4, epochs=None))
    assert_one_line(str(caught.value))


def test_recipe_can_be_pickled_but_open_corpus_cannot(corpus: StreamCorpus) -> None:
    stream = TokenStream(corpus, block_size=8)
    for unsendable in (corpus, stream):
        with pytest.raises(MisuseError, match="send its recipe, and open the stream there") as caught:
            ForkingPickler.dumps(unsendable)
        assert_one_line(str(caught.value))
    again = TokenStream(ForkingPickler.loads(ForkingPickler.dumps(corpus.recipe)), block_size=8)
    assert np.array_equal(list(again), list(stream))


def test_open_corpus_reports_missing_inputs_with_their_setting(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('inputs = ["gone.txt"]\n')
    (tmp_path / "none.toml").write_text('format = "text"\n')
    for corpus, inputs, expected in (
        (str(tmp_path / "mine.toml"), {}, r"mine.toml: inputs /.* does not exist"),
        (tmp_path / "mine.toml", {"inputs": ("other.txt",)}, r"^inputs other.txt does not exist"),
        (
            str(tmp_path / "none.toml"),
            {},
            r"none names no files to read; in a recipe file write inputs = \['data/\*.parquet'\] with its files",
        ),
        (None, {}, r"in Python pass inputs=\('data/\*.parquet',\)"),
    ):
        with pytest.raises(MisuseError, match=expected) as caught:
            open_corpus(corpus, **inputs)
        assert "--input" not in str(caught.value)
        assert_one_line(str(caught.value))


def test_open_corpus_rejects_a_string_for_inputs(tmp_path: Path) -> None:
    """A string is also a sequence of strings; the first letter "/" would name the whole disk."""
    path = str(write_parquet(tmp_path / "x.parquet", ["x"]))
    with pytest.raises(MisuseError, match=r"inputs must be of type list of str, got '.*") as caught:
        open_corpus(None, inputs=path, tokenizer="byte")
    assert_one_line(str(caught.value))


def test_open_corpus_rejects_the_same_settings_by_name_and_by_recipe(tmp_path: Path) -> None:
    inputs = (str(write_parquet(tmp_path / "x.parquet", ["x"])),)
    for corpus in ("synth", load_recipe("synth")):
        with pytest.raises(MisuseError, match="text_column has no effect on synth"):
            open_corpus(corpus, inputs=inputs, text_column="text")


def test_open_corpus_passes_every_note_to_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "x.parquet", ["x"])
    (tmp_path / "notes.pdf").touch()
    lines: list[str] = []
    open_files(tmp_path, log=lines.append, group_by="position", dedup=True)
    for line, word in zip(
        lines, ("skipped 1 file of unknown format", "duplicates are kept", "both sides of the split"), strict=True
    ):
        assert word in line
        assert_one_line(line)
    assert capfd.readouterr().err == ""


def test_stream_opens_a_recipe_by_path_or_object(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", make_texts(5))
    (tmp_path / "mine.toml").write_text(
        'inputs = ["x.parquet"]\ntokenizer = "byte"\nsplit = "threshold"\ndedup = false\n'
    )
    for path in (tmp_path / "mine.toml", str(tmp_path / "mine.toml")):
        assert len(next(TokenStream(path, block_size=4))) == 5
    recipe = Recipe(
        corpus="own", inputs=(str(tmp_path / "x.parquet"),), tokenizer="byte", split="threshold", dedup=False
    )
    assert len(next(TokenStream(recipe, block_size=4))) == 5
