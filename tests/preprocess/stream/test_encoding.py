"""Encoding: the fast library and the reference."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from preprocess.documents import get_text_buffers
from preprocess.errors import FolioError
from preprocess.stream import TokenStream
from preprocess.tokenizers.interface import Encoded
from tests.conftest import assert_one_line
from tests.preprocess.stream.helpers import (
    make_texts,
    open_files,
    write_parquet,
)


def test_backend_mismatch_ends_the_stream_and_names_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "x.parquet", make_texts(40))
    fast, reference = open_files(path, tokenizer="gpt2"), open_files(path, tokenizer="gpt2", use_reference=True)
    assert (fast.tokenizer.backend, reference.tokenizer.backend) == ("gigatoken", "tiktoken")
    expected = list(TokenStream(fast, block_size=8))
    assert np.array_equal(list(TokenStream(reference, block_size=8)), expected)
    backend = fast.tokenizer._fast  # type: ignore[attr-defined]
    encode = backend.encode
    monkeypatch.setattr(backend, "encode", lambda texts: (encode(texts)[0] ^ 1, encode(texts)[1]))
    advice = "open the corpus again with .*use_reference=True.*, or train on a build"
    with pytest.raises(FolioError, match=f"gigatoken differs from tiktoken .* {advice}") as caught:
        list(TokenStream(fast, block_size=8))
    assert_one_line(str(caught.value))


def test_long_documents_are_encoded_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.stages.slices.LONG_SLICE_BYTES", 1 << 18)
    monkeypatch.setattr("preprocess.tokenizers.long_words.LONG_WORD_BYTES", 1 << 18)
    texts = ["x", "ab" * 200_000 + " end", "some words " * 50_000, "y"]
    corpus = open_files(write_parquet(tmp_path / "x.parquet", texts), tokenizer="gpt2", val_fraction=0.0)
    sizes = []
    encode = corpus.tokenizer.encode

    def record(texts: pa.LargeStringArray) -> Encoded:
        sizes.append(len(get_text_buffers(texts)[0]))
        return encode(texts)

    monkeypatch.setattr(corpus.tokenizer, "encode", record)
    tokens = np.concatenate(list(TokenStream(corpus, block_size=1, stream_buffer=0)))
    expected = [[*corpus.tokenizer.encode_text(text).tolist(), corpus.tokenizer.eot_id] for text in texts]
    assert tokens.tolist() == list(itertools.chain(*expected))[: len(tokens)]
    assert len("ab" * 200_000) not in sizes  # the long word is encoded in pieces
