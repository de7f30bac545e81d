"""Reading a SentencePiece model file without the library."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece

from preprocess.errors import FolioError
from preprocess.tokenizers import sentencepiece_bpe, sentencepiece_model
from preprocess.tokenizers.sentencepiece_bpe import SentencePieceTokenizer
from preprocess.tokenizers.sentencepiece_model import BPE, SentencePieceModel, measure_longest_replacement
from tests.conftest import assert_one_line
from tests.preprocess.tokenizers.helpers import LINES


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentencepiece_bpe.train(LINES * 20, num_pieces=320).files["sentencepiece.model"]


def make_message(number: int, content: bytes) -> bytes:
    """Return a field of a Protocol Buffers message."""
    size, encoded = len(content), b""
    while size >= 0x80:
        encoded, size = encoded + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + encoded + bytes([size]) + content


def test_pieces_are_those_of_the_library(model: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    read = SentencePieceModel(model)
    pieces = read.read_pieces()
    assert len(pieces) == 320 and read.charsmap == b""
    assert [piece.text.decode() for piece in pieces] == [processor.id_to_piece(i) for i in range(320)]
    assert [piece.score for piece in pieces] == [processor.get_score(i) for i in range(320)]
    assert read.trainer[3] == BPE


def test_fields_of_another_type_are_ignored() -> None:
    piece = bytes([1 << 3, 5]) + bytes([3 << 3 | 2, 1, 65])  # a text that is a number, a type that is a text
    assert SentencePieceModel(make_message(1, piece)).read_pieces() == [(b"", 0.0, 1)]


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05abc", b"\xff" * 20, b"\x0b", b"\x0f", b"\x0d\x01", b"\x0a\xff\xff\xff\xff\x7f"]
)
def test_damaged_message_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="it ends inside|unknown type"):
        SentencePieceModel(data)


def test_longest_replacement_is_that_of_the_map() -> None:
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=output, vocab_size=54, model_type="unigram", minloglevel=2
    )
    charsmap = SentencePieceModel(output.getvalue()).charsmap
    assert len(charsmap) > 100_000 and measure_longest_replacement(charsmap) == 33
    assert measure_longest_replacement(b"") == 0
    SentencePieceTokenizer(output.getvalue())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.replace(b"\xd0\xb0", b"\xff\xb0", 1), "is not a SentencePiece model"),  # UTF-8
        (lambda m: m.replace(b"<0x41>", b"<0xZZ>"), "is not a SentencePiece model"),
        (lambda m: m + make_message(3, make_message(2, bytes(4) + b"x" * 65)), "replaces a character by 65 bytes"),
        (lambda m: m + b"\x0a\0" * 500, "has more than 800 pieces"),
        (lambda m: m + b"\x20\0" * 700, "has more than 1,000 fields"),
        (lambda m: m + make_message(2, b"\x20\0" * 700), "has more than 1,000 fields"),
        (lambda m: m[:-1], "is not a SentencePiece model"),
        (lambda m: b"", "is not a SentencePiece model"),
    ],
    ids=["utf-8", "byte piece", "charsmap", "pieces", "fields", "settings", "cut", "empty"],
)
def test_damaged_model_is_one_line(
    model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object, message: str
) -> None:
    monkeypatch.setattr(sentencepiece_model, "MAX_VOCAB_SIZE", 800)
    monkeypatch.setattr(sentencepiece_model, "MAX_FIELDS", 1000)
    path = tmp_path / "sentencepiece.model"
    path.write_bytes(change(model))  # type: ignore[operator]
    with pytest.raises(FolioError, match=message) as raised:
        sentencepiece_bpe.load(path)
    assert_one_line(str(raised.value).replace(str(tmp_path), ""))
