"""Counting the characters that a tokenizer drops or replaces by the unknown token."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.tokenizers.characters import ByteTokenizer
from preprocess.tokenizers.huggingface import HuggingFaceTokenizer
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.lost_characters import CharacterLoss, LossCounter
from tests.preprocess.tokenizers.helpers import arrow, make_dropping_tokenizer, make_word_file
from tests.preprocess.tokenizers.json_makers import MAKERS, library, to_bytes

KNOWN = "abcде "
TEXTS = st.lists(st.text(alphabet=KNOWN + "12я€😀\n", max_size=20), max_size=6)


def measure(tokenizer: Tokenizer, *batches: list[str]) -> CharacterLoss:
    counter = LossCounter(tokenizer)
    for texts in batches:
        counter.add(arrow(texts), *tokenizer.encode_reference(arrow(texts)))
    return counter.measure()


@pytest.fixture(scope="module")
def dropping() -> HuggingFaceTokenizer:
    tokenizer: HuggingFaceTokenizer = make_dropping_tokenizer(KNOWN)
    return tokenizer


@settings(deadline=None)
@given(texts=TEXTS)
def test_dropped_characters_are_counted_exactly(dropping: HuggingFaceTokenizer, texts: list[str]) -> None:
    loss = measure(dropping, texts)
    assert loss.lost == Counter(character for character in "".join(texts) if character not in KNOWN)
    assert loss.num_characters == len("".join(texts))


@settings(deadline=None)
@given(texts=TEXTS, cut=st.integers(0, 6))
def test_loss_does_not_depend_on_the_batches(dropping: HuggingFaceTokenizer, texts: list[str], cut: int) -> None:
    whole = measure(dropping, texts)
    assert measure(dropping, texts[:cut], texts[cut:]) == whole
    assert measure(dropping, texts[:cut]) + measure(dropping, texts[cut:]) == whole


def test_unknown_words_are_lost_as_a_whole() -> None:
    word_piece = library.Tokenizer(library.models.WordPiece({"[UNK]": 0, "thou": 1}, unk_token="[UNK]"))
    word_piece.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    word_piece.decoder = library.decoders.WordPiece()
    assert measure(HuggingFaceTokenizer(word_piece.to_str().encode()), ["thou arty thou"]).lost == Counter("arty")


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(max_size=30), max_size=5))
@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_tokenizers_with_all_bytes_lose_nothing(name: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    assert not tokenizer.can_lose_characters
    assert not set(measure(tokenizer, texts).lost) - {"\u2581"}  # SentencePiece's sign for a space


TOKENIZERS = {name: HuggingFaceTokenizer(to_bytes(MAKERS[name]())) for name in ("byte_level", "byte_fallback")}


def test_byte_level_vocabulary_without_some_bytes_can_lose_characters() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = json.loads(make_word_file("abc", decoder=byte_level, pre_tokenizer=byte_level))
    tokenizer = HuggingFaceTokenizer(to_bytes(spec))
    assert tokenizer.can_lose_characters and not tokenizer.is_byte_level
    assert measure(tokenizer, ["aé1b"]).lost == Counter("é1")


def test_normalizer_that_removes_characters_can_lose_them() -> None:
    spec = MAKERS["byte_level"]()
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": "z"}, "content": ""}
    tokenizer = HuggingFaceTokenizer(to_bytes(spec))
    assert tokenizer.can_lose_characters and measure(tokenizer, ["zoo"]).lost == Counter("z")
    spec["normalizer"] = {"type": "NFC"}
    assert not HuggingFaceTokenizer(to_bytes(spec)).can_lose_characters


def test_description_names_the_most_frequent_characters(dropping: HuggingFaceTokenizer) -> None:
    line = measure(dropping, ["a\x1b1122233"]).describe()
    assert line is not None and "loses 8 of 9 characters (88.89%), most often '2' 3, '1' 2, '3' 2, '\\x1b' 1" in line
    assert (
        measure(dropping, ["abc"]).describe() is None and measure(ByteTokenizer(has_eot=True), ["é"]).describe() is None
    )
