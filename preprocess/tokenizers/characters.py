"""Tokenizers with one id per character or one id per byte.

They suit small models, comparisons with nanoGPT's character-level examples, and tests. Encoding is
a table lookup in NumPy, so one backend suffices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pyarrow as pa

from preprocess.documents import get_text_buffers
from preprocess.errors import FolioError
from preprocess.tokenizers.interface import END_OF_TEXT, Encoded, Tokenizer

ALPHABET_FILE = "alphabet.txt"
NUM_CODE_POINTS = 0x110000
NOT_IN_ALPHABET = np.uint32(0xFFFFFFFF)


class _AlphabetTokenizer(Tokenizer):
    """The common part of the two kinds: an alphabet of byte strings, whose indices are the ids."""

    reference_backend: ClassVar[str] = "numpy"
    backend = "numpy"
    cuts = "characters"

    def _set_alphabet(self, alphabet: list[bytes], *, has_eot: bool) -> None:
        """Use the indices in `alphabet` as ids, and the next id for the end-of-text token.

        Without an end-of-text token the ids of a `char` tokenizer are those of nanoGPT's
        prepare.py.
        """
        self.eot_id = len(alphabet) if has_eot else None
        self.id_to_bytes = [*alphabet, b""] if has_eot else alphabet
        self.special_tokens = {END_OF_TEXT: len(alphabet)} if has_eot else {}
        self.settings = {}


class CharTokenizer(_AlphabetTokenizer):
    """One id per character of a fixed alphabet."""

    kind: ClassVar[str] = "char"

    def __init__(self, alphabet: str, *, has_eot: bool) -> None:
        """`alphabet` contains every character once; a character's index is its id.

        Raises ValueError if a character is repeated.
        """
        if len(set(alphabet)) != len(alphabet):
            raise ValueError(f"{ALPHABET_FILE} repeats a character")
        self._set_alphabet([c.encode() for c in alphabet], has_eot=has_eot)
        self.files = {ALPHABET_FILE: alphabet.encode()}
        self._id_of_code_point = np.full(NUM_CODE_POINTS, NOT_IN_ALPHABET, np.uint32)
        self._id_of_code_point[[ord(c) for c in alphabet]] = np.arange(len(alphabet), dtype=np.uint32)

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode every text. Raises FolioError for a character that is not in the alphabet."""
        data, boundaries = get_text_buffers(texts)
        ids = self._id_of_code_point[decode_code_points(data)]
        if len(ids) and ids.max() == NOT_IN_ALPHABET:
            missing = chr(int(decode_code_points(data)[np.argmax(ids)]))
            raise FolioError(
                f"the character {missing!r} is not in the alphabet of this tokenizer; "
                "remove it from the text, or use another tokenizer"
            )
        return ids, _count_characters_before(data, boundaries[1:])


class ByteTokenizer(_AlphabetTokenizer):
    """One id per byte of UTF-8: the byte's value."""

    kind: ClassVar[str] = "byte"
    is_byte_level = True

    def __init__(self, *, has_eot: bool) -> None:
        self._set_alphabet([bytes([b]) for b in range(256)], has_eot=has_eot)
        self.files = {}

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode every text."""
        data, boundaries = get_text_buffers(texts)
        return data.astype(np.uint32), boundaries[1:]


def train_char(texts: Iterable[str], *, has_eot: bool) -> CharTokenizer:
    """Return a tokenizer whose alphabet is every character of `texts`, sorted by code point."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    return CharTokenizer("".join(sorted(alphabet)), has_eot=has_eot)


def decode_code_points(utf8: np.ndarray) -> np.ndarray:
    """Return the code point of every character in the UTF-8 bytes `utf8`: (C,) uint32."""
    return np.frombuffer(utf8.tobytes().decode("utf-8").encode("utf-32-le"), np.uint32)


def _count_characters_before(utf8: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the number of characters that start before each byte offset: (D,) int64."""
    num_started = np.concatenate([[0], np.cumsum((utf8 & 0xC0) != 0x80)])  # 0b10xxxxxx continues a character
    return num_started[offsets].astype(np.int64)
