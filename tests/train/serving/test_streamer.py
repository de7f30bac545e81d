"""The parts that a stream sends are together the text that all ids decode to, whatever a model generates."""

from __future__ import annotations

import asyncio
import string
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.serving.streamer import BYTE_PIECE, Cancelled, WholeStreamer

tokenizers = pytest.importorskip("tokenizers")
END = "<end>"
WORDS = ["▁the", "▁", *string.ascii_lowercase, "é", "日", "\ufffd"]


def make_tokenizer(*, has_byte_pieces: bool) -> Any:
    """Return a tokenizer of single bytes: SentencePiece's or GPT-2's, which has the byte \\n as Ċ."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + WORDS
    if not has_byte_pieces:
        pieces = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    decoders = tokenizers.decoders
    sentencepiece = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(sentencepiece) if has_byte_pieces else decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


TOKENIZERS = {True: make_tokenizer(has_byte_pieces=True), False: make_tokenizer(has_byte_pieces=False)}


def stream(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the parts of `ids`."""

    async def read() -> list[str]:
        queue, ended = asyncio.Queue[Any](), list[list[int]]()
        streamer = WholeStreamer(tokenizer, queue, on_end=ended.append)
        streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt
        for i in ids:
            streamer.put(torch.tensor([i]))
        streamer.end()
        assert (ended, streamer.total_tokens) == ([ids], len(ids))
        parts = []
        while (part := await queue.get()) is not None:
            parts.append(part)
        return parts

    return asyncio.run(read())


@given(has_byte_pieces=st.booleans(), data=st.data())
def test_parts_together_are_the_decoded_text(has_byte_pieces: bool, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[has_byte_pieces]
    some_id = st.integers(0, tokenizer.get_vocab_size() - 1)
    text_ids = st.sampled_from(["é", "日本", "😀", "\n:"]).map(lambda text: encode(tokenizer, text))
    pieces = data.draw(st.lists(st.one_of(some_id.map(lambda i: [i]), text_ids), max_size=12))
    ids = [i for piece in pieces for i in piece]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of the bytes of `text`."""
    alphabet = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    names = [f"<0x{byte:02X}>" for byte in text.encode()]
    ids = [tokenizer.token_to_id(name) for name in names]
    return ids if None not in ids else [tokenizer.token_to_id(letter) for word, _ in alphabet for letter in word]


@pytest.mark.parametrize("has_byte_pieces", TOKENIZERS)
def test_part_is_sent_as_soon_as_its_characters_are_known(has_byte_pieces: bool) -> None:
    tokenizer = TOKENIZERS[has_byte_pieces]
    first, second, end = encode(tokenizer, "a\n日b")[:2], encode(tokenizer, "日"), tokenizer.token_to_id(END)
    is_byte = BYTE_PIECE.fullmatch(tokenizer.id_to_token(first[0])) is not None
    expected = ["a\n日"] if is_byte else ["a", "\n", "日"]
    assert stream(tokenizer, [*first, *second[:1], end, *second[1:], end]) == expected


def test_cancelled_stream_ends_the_generation() -> None:
    async def cancel() -> None:
        streamer = WholeStreamer(TOKENIZERS[True], asyncio.Queue(), on_end=lambda ids: None)
        streamer.cancel()
        with pytest.raises(Cancelled):
            streamer.put(torch.tensor([1]))

    asyncio.run(cancel())
