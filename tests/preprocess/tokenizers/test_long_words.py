"""Words of many megabytes, which are encoded in pieces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import regex
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.shards.format import Build
from preprocess.tokenizers.long_words import Part, WordEncoder, may_have_long_word, split_at_long_words
from preprocess.tokenizers.tiktoken_bpe import ONE_WORD, TiktokenTokenizer, find_encoding, list_encodings, load
from tests.helpers.file_builds import build_files

PATTERNS = sorted({find_encoding(name).pattern for name in list_encodings()})
ALPHABETS = ["a", "ab", "ACGT", "the ing", "0123456789", " ", " \n", "é中文😀", "\u0301\u0327", "ÃÂ€"]
SMALL = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", autouse=True)
def no_network_of_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        yield


@pytest.fixture(scope="module")
def gpt2(no_network_of_module: None) -> TiktokenTokenizer:
    return load()


@pytest.fixture(scope="module")
def one_word(gpt2: TiktokenTokenizer) -> tiktoken.Encoding:
    """Return GPT-2's encoding of a text that is one word."""
    return tiktoken.Encoding("one", pat_str=ONE_WORD, mergeable_ranks=gpt2.ranks, special_tokens={})


@SMALL
@given(st.sampled_from(ALPHABETS).flatmap(lambda alphabet: st.text(alphabet, min_size=60, max_size=400)))
def test_the_pieces_of_a_word_have_the_ids_of_the_word(
    monkeypatch: pytest.MonkeyPatch, gpt2: TiktokenTokenizer, one_word: tiktoken.Encoding, word: str
) -> None:
    monkeypatch.setattr("preprocess.tokenizers.long_words.PIECE_CHARACTERS", 30)  # no token of a piece's length
    monkeypatch.setattr("preprocess.tokenizers.long_words.NUM_UNCERTAIN_IDS", 2)
    pieces = list(WordEncoder(one_word, gpt2.id_to_bytes).encode(f"xy{word}z", 2, 2 + len(word)))
    assert [i for ids in pieces for i in ids] == one_word.encode_ordinary(word)
    assert len(pieces) > 1


@SMALL
@given(
    st.lists(
        st.sampled_from(["a", "B", " ", "\n", "!", "9", "中", "'s", "\u3000", "a" * 9, " " * 9, "\n" * 9]), max_size=30
    ),
    st.sampled_from(PATTERNS),
)
def test_parts_of_a_text_have_the_words_of_the_text(
    monkeypatch: pytest.MonkeyPatch, tokens: list[str], pattern: str
) -> None:
    monkeypatch.setattr("preprocess.tokenizers.long_words.LONG_WORD_BYTES", 28)
    monkeypatch.setattr("preprocess.tokenizers.long_words.PART_CHARACTERS", 12)
    monkeypatch.setattr("preprocess.tokenizers.long_words.MAX_PENDING_WORDS", 3)
    text = "".join(tokens)
    parts = list(split_at_long_words(text, pattern))
    assert "".join(text[part.start : part.end] for part in parts) == text
    words = []
    for start, end, is_word in parts:
        words += [text[start:end]] if is_word else regex.findall(pattern, text[start:end])
    assert words == regex.findall(pattern, text)
    assert all(part.is_word for part in parts if part.end - part.start > 7 + 12 + 9 * 5)


def test_long_words_are_parts() -> None:
    text = "some words " + "a" * 1_100_000 + " \n" + " " * 1_100_000 + "and others"
    assert may_have_long_word(np.frombuffer(text.encode(), np.uint8))
    parts = [part for part in split_at_long_words(text, PATTERNS[0]) if part.end - part.start > 1_000_000]
    assert [part.is_word for part in parts] == [True, True]
    assert not may_have_long_word(np.frombuffer(b"word " * 1_000_000, np.uint8))
    assert list(split_at_long_words("a b", PATTERNS[0])) == [Part(0, 3, is_word=False)]


@pytest.mark.parametrize("characters", ["ACGT", "a", "é"])
def test_a_word_of_two_megabytes_is_encoded_as_by_the_reference(gpt2: TiktokenTokenizer, characters: str) -> None:
    rng = np.random.default_rng(0)
    word = "".join(rng.choice(list(characters), 1_200_000))
    texts = pa.array([f"before {word}\nafter"], pa.large_string())
    begin = time.process_time()
    ids = np.concatenate(list(gpt2.encode_long(texts)))
    assert time.process_time() - begin < 5
    assert np.array_equal(ids, gpt2.encode_reference(texts)[0])


def test_a_build_of_a_long_word_has_the_bytes_of_whole_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("some words " + "ACGGT" * 300 + " and   \n\n others")
    (tmp_path / "b.txt").write_text("\n" * 700 + "short")
    (tmp_path / "c.txt").write_text("three words only")

    def make(name: str) -> Build:
        return build_files(tmp_path, tmp_path / "*.txt", tokenizer="gpt2", author="A", name=name)

    whole = make("whole")
    monkeypatch.setattr("preprocess.stages.slices.LONG_SLICE_BYTES", 500)
    monkeypatch.setattr("preprocess.tokenizers.long_words.LONG_WORD_BYTES", 400)
    monkeypatch.setattr("preprocess.tokenizers.long_words.PIECE_CHARACTERS", 150)
    assert make("pieces").build_id == whole.build_id
