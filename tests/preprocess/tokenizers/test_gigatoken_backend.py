"""The fast backend: its cache, and what happens if it cannot start."""

from __future__ import annotations

import pytest

from preprocess.tokenizers import gigatoken_backend, tiktoken_bpe
from tests.preprocess.tokenizers.helpers import LINES, arrow


class Panic(BaseException):
    """A stand-in for a panic of a Rust library, which is not an Exception either."""


def test_full_cache_restarts_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiktoken_bpe.load()
    assert tokenizer.start_fast_backend() is None
    monkeypatch.setattr(gigatoken_backend, "MAX_CACHE_BYTES", -(1 << 40))
    monkeypatch.setattr(gigatoken_backend, "MIN_GROWTH_BYTES", -(1 << 40))
    before = tokenizer._fast._tokenizer
    expected = tokenizer.encode_reference(arrow(LINES))[0].tolist()
    assert all(tokenizer.encode(arrow(LINES))[0].tolist() == expected for _ in range(3))
    assert tokenizer._fast._tokenizer is not before


@pytest.mark.parametrize("error", [ValueError, Panic])
def test_backend_that_cannot_start_leaves_the_reference(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(self: object, tokenizer_class: object) -> None:
        raise error("unknown scheme\nat line 3")

    tokenizer = tiktoken_bpe.load()
    monkeypatch.setattr(tiktoken_bpe.Gpt2Tokenizer, "_make_gigatoken", fail)
    assert tokenizer.start_fast_backend() == f"gigatoken cannot be used ({error.__name__}: unknown scheme)"
    assert tokenizer.backend == "tiktoken"


def test_texts_are_encoded_the_same_one_by_one_and_as_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = arrow([*LINES, "", " "])
    encoded = []
    for max_bytes in (0, 1 << 40):
        monkeypatch.setattr(gigatoken_backend, "MAX_BYTES_ONE_BY_ONE", max_bytes)
        tokenizer = tiktoken_bpe.load()
        assert tokenizer.start_fast_backend() is None
        encoded.append([array.tolist() for array in (*tokenizer.encode(texts.slice(1)), *tokenizer.encode(texts[:0]))])
    assert encoded[0] == encoded[1]
    assert encoded[0][0] == tokenizer.encode_reference(texts.slice(1))[0].tolist()
