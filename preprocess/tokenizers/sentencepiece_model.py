"""Read a SentencePiece model file without the library.

The file is a Protocol Buffers message. The numbers of the fields are those in
sentencepiece_model.proto. A field that has an integer where that file has another type, or the
reverse, is ignored.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from preprocess.tokenizers.interface import MAX_VOCAB_SIZE

NORMAL, USER_DEFINED, UNUSED, BYTE = 1, 4, 5, 6  # types of pieces
BPE = 2  # a type of model
MAX_REPLACEMENT_BYTES = 64  # of a text that replaces a character; the maximum in SentencePiece's own maps is 33
MAX_FIELDS = MAX_VOCAB_SIZE + (1 << 20)  # of a file, pieces included; reading them takes about five seconds
_PIECES, _TRAINER, _NORMALIZER, _CHARSMAP = 1, 2, 3, 2
_MAX_SETTING = 199  # numbers from 200 on are for extensions
_USER_DEFINED_FIELD = bytes([3 << 3, USER_DEFINED])  # the type of a piece
_LENGTH_DELIMITED = 2  # a wire type
_FIXED_SIZES = {1: 8, 5: 4}  # by wire type
Field = tuple[int, int | bytes]
Value = TypeVar("Value", int, bytes)


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: bytes
    score: float
    type: int


class Settings(dict[int, int | bytes]):
    """The values of a message by their field numbers."""

    def get_value(self, number: int, default: Value) -> Value:
        """Return the value of field `number` if it has the type of `default`, else `default`."""
        value = self.get(number, default)
        return value if isinstance(value, type(default)) else default


class SentencePieceModel:
    """The pieces and the settings in a model file."""

    def __init__(self, data: bytes) -> None:
        """`data` is the content of the file.

        Raises ValueError if it is not a Protocol Buffers message or has too many pieces or fields.
        """
        self._pieces: list[bytes] = []
        self.trainer, self.normalizer = Settings(), Settings()
        budget = iter(range(MAX_FIELDS))
        for number, value in _read_fields(data, budget):
            if number == _PIECES and isinstance(value, bytes):
                if len(self._pieces) == MAX_VOCAB_SIZE:
                    raise ValueError(f"it has more than {MAX_VOCAB_SIZE:,} pieces")
                self._pieces.append(value)
            elif number in (_TRAINER, _NORMALIZER) and isinstance(value, bytes):
                settings = self.trainer if number == _TRAINER else self.normalizer
                settings.update(field for field in _read_fields(value, budget) if field[0] <= _MAX_SETTING)

    @property
    def charsmap(self) -> bytes:
        """The map that replaces characters; empty if the model does not normalize text."""
        return self.normalizer.get_value(_CHARSMAP, b"")

    @property
    def removes_white_space(self) -> bool:
        """Whether runs of spaces become one space, and those at the ends of a text are removed."""
        return bool(self.normalizer.get(4, True))

    def find_user_defined(self) -> list[bytes]:
        """Return the pieces that are found in text as whole words. Raises ValueError if one is damaged."""
        candidates = [piece for piece in self._pieces if _USER_DEFINED_FIELD in piece]  # quick: most pieces are normal
        fields = [Settings(_read_fields(piece, itertools.repeat(0))) for piece in candidates]
        return [f.get_value(1, b"") for f in fields if f.get_value(3, NORMAL) == USER_DEFINED]

    def read_pieces(self) -> list[Piece]:
        """Return the pieces in the order of their ids. Raises ValueError if one is damaged."""
        fields = [Settings(_read_fields(piece, itertools.repeat(0))) for piece in self._pieces]
        return [Piece(f.get_value(1, b""), _to_float(f.get_value(2, bytes(4))), f.get_value(3, NORMAL)) for f in fields]


def measure_longest_replacement(charsmap: bytes) -> int:
    """Return the size in bytes of the longest text that replaces a character in `charsmap`.

    The map consists of the size of a trie (4 bytes), the trie, and the texts, each with a zero byte
    at its end.
    """
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(map(len, texts.split(b"\0")))


def _read_fields(message: bytes, budget: Iterator[int]) -> Iterator[Field]:
    """Yield (number, value) of each field of a message.

    Takes an item of `budget` for each. Raises ValueError if none is left, or if the message is damaged.
    """
    offset, end = 0, len(message)
    while offset < end:
        if next(budget, None) is None:
            raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
        key, offset = _read_varint(message, offset)
        wire_type = key & 7
        if wire_type == 0:
            value, offset = _read_varint(message, offset)
            yield key >> 3, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, offset = _read_varint(message, offset)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"it has a field of the unknown type {wire_type}")
        if offset + size > end:
            raise ValueError("it ends inside a field")
        yield key >> 3, message[offset : offset + size]
        offset += size


def _read_varint(message: bytes, offset: int) -> tuple[int, int]:
    """Return the number at `offset`, stored with seven bits per byte, and the offset after it."""
    if offset < len(message) and message[offset] < 0x80:  # most have one byte
        return message[offset], offset + 1
    value = shift = 0
    for byte in message[offset : offset + 10]:
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
    raise ValueError("it ends inside a number")


def _to_float(data: bytes) -> float:
    value: float = struct.unpack("<f", data)[0] if len(data) == 4 else 0.0
    return value
