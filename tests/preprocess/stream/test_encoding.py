"""Encoding: the fast library and the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocess.errors import FolioError
from preprocess.stream import TokenStream
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
