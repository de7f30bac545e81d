"""One id a character, or one a byte: for small models, for comparison with nanoGPT, and for tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pyarrow as pa

from preprocess.documents import text_buffers
from preprocess.errors import FolioError
from preprocess.tokenizers.interface import END_OF_TEXT, Encoded, Tokenizer

ALPHABET_FILE = "alphabet.txt"
NUM_CODE_POINTS = 0x110000
NOT_IN_ALPHABET = np.uint32(0xFFFFFFFF)


class _Plain(Tokenizer):
    reference_backend: ClassVar[str] = "numpy"
    engine = "numpy"

    def _set_pieces(self, pieces: list[bytes], *, has_eot: bool) -> None:
        """The end-of-text id comes after the alphabet, and only where documents end with it, so that ids stay nanoGPT's."""
        self.eot_id = len(pieces) if has_eot else None
        self.pieces = [*pieces, b""] if has_eot else pieces
        self.special_tokens = {END_OF_TEXT: len(pieces)} if has_eot else {}
        self.settings = {}


class CharTokenizer(_Plain):
    kind: ClassVar[str] = "char"

    def __init__(self, alphabet: str, *, has_eot: bool) -> None:
        """`alphabet`: every character once; its place is its id."""
        if len(set(alphabet)) != len(alphabet):
            raise ValueError(f"{ALPHABET_FILE} repeats a character")
        self._set_pieces([c.encode() for c in alphabet], has_eot=has_eot)
        self.files = {ALPHABET_FILE: alphabet.encode()}
        self._ids = np.full(NUM_CODE_POINTS, NOT_IN_ALPHABET, np.uint32)
        self._ids[[ord(c) for c in alphabet]] = np.arange(len(alphabet), dtype=np.uint32)

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        data, boundaries = text_buffers(texts)
        ids = self._ids[code_points(data)]
        if len(ids) and ids.max() == NOT_IN_ALPHABET:
            missing = chr(int(code_points(data)[np.argmax(ids)]))
            raise FolioError(
                f"the character {missing!r} is not in this build's alphabet; write without it, or use another tokenizer"
            )
        return ids, _characters_before(data, boundaries[1:])


class ByteTokenizer(_Plain):
    kind: ClassVar[str] = "byte"
    is_byte_level = True

    def __init__(self, *, has_eot: bool) -> None:
        self._set_pieces([bytes([b]) for b in range(256)], has_eot=has_eot)
        self.files = {}

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        data, boundaries = text_buffers(texts)
        return data.astype(np.uint32), boundaries[1:]


def train_char(texts: Iterable[str], *, has_eot: bool) -> CharTokenizer:
    """The alphabet of `texts`, sorted by code point."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return CharTokenizer("".join(sorted(seen)), has_eot=has_eot)


def code_points(utf8: np.ndarray) -> np.ndarray:
    return np.frombuffer(utf8.tobytes().decode("utf-8").encode("utf-32-le"), np.uint32)


def _characters_before(utf8: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """How many characters start before each byte offset of `boundaries`: (D,) int64."""
    starts_before = np.concatenate([[0], np.cumsum((utf8 & 0xC0) != 0x80)])
    return starts_before[boundaries].astype(np.int64)
