"""Character and byte tokenizers."""

from __future__ import annotations

import pytest

from preprocess.errors import FolioError
from preprocess.tokenizers.characters import ByteTokenizer, CharTokenizer, train_char


def test_encode_names_a_character_outside_the_alphabet() -> None:
    with pytest.raises(FolioError, match="character 'ы' is not in the alphabet of this tokenizer"):
        train_char(["abc"], has_eot=False).encode_text("aыb")


def test_end_of_text_id_follows_the_alphabet() -> None:
    with_eot, without = train_char(["ba"], has_eot=True), train_char(["ba"], has_eot=False)
    assert (with_eot.eot_id, with_eot.vocab_size, without.eot_id, without.vocab_size) == (2, 3, None, 2)
    assert ByteTokenizer(has_eot=True).eot_id == 256
    with pytest.raises(ValueError, match="repeats a character"):
        CharTokenizer("aba", has_eot=False)
