"""SentencePiece models, trained by Folio and elsewhere."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import sentencepiece

from preprocess.errors import FolioError, MisuseError
from preprocess.tokenizers import sentencepiece_bpe
from preprocess.tokenizers.sentencepiece_bpe import SentencePieceTokenizer
from tests.preprocess.tokenizers.helpers import LINES, arrow


def test_train_makes_a_lossless_model_with_the_fixed_settings() -> None:
    tokenizer = sentencepiece_bpe.train(LINES * 20, num_pieces=400)
    assert tokenizer.special_tokens == {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<eos>": 3}
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eot_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 400 and tokenizer.is_lossless
    assert tokenizer.settings == {"num_pieces": 400, **sentencepiece_bpe.TRAINING}
    without_slash_byte = b"".join(tokenizer.files["sentencepiece.model"].split(b"<0x2F>"))
    assert b"/" not in without_slash_byte, "the model contains a path of this machine"


def test_training_is_reproducible_to_the_byte() -> None:
    first, second = (sentencepiece_bpe.train(iter(LINES * 20), num_pieces=350).files for _ in range(2))
    assert first == second


def test_model_trained_elsewhere_reports_its_round_trip_issue() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=model,
        vocab_size=54,
        model_type="unigram",
        pad_id=-1,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eot_id) == (None, 0, 1, 2)
    assert tokenizer.settings == {"num_pieces": 54}
    assert not tokenizer.is_lossless and "comes back as" in str(tokenizer.round_trip_issue)
    assert not set(tokenizer.encode_text("a<s></s>a").tolist()) & {1, 2}


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_user_defined_words_get_the_ids_of_the_library(model_type: str) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=model, vocab_size=400, hard_vocab_limit=False,
        model_type=model_type, user_defined_symbols=["newword", "Слово"], byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(model.getvalue())
    tokenizer.start_fast_backend()
    assert "newword" not in tokenizer.special_tokens and "anewword newword  b" in tokenizer.probe_texts
    texts = ["newword", "a newword, Слово", "newwords anewword", "Слово  x"]
    ids, ends = tokenizer.encode(arrow(texts))
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    assert [part.tolist() for part in np.split(ids, ends[:-1])] == library.encode(texts)
    assert library.piece_to_id("newword") in ids


def test_only_models_without_all_bytes_or_with_normalisation_can_lose_characters() -> None:
    assert not sentencepiece_bpe.train(LINES * 20, num_pieces=400).can_lose_characters
    settings = {"sentence_iterator": iter(LINES * 20), "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(model_writer=model, byte_fallback=True, **settings)
    assert SentencePieceTokenizer(model.getvalue()).can_lose_characters  # the default rules remove control characters


def test_train_does_not_drop_long_lines() -> None:
    line = "слово " * 400_000  # 4.4 MB in one line
    assert "слово".encode() in sentencepiece_bpe.train([line], num_pieces=275).id_to_bytes


def test_train_does_not_drop_lines_with_the_word_boundary_mark() -> None:
    line = "\u2585 слово за слово \u2585\n"
    tokenizer = sentencepiece_bpe.train([line * 50], num_pieces=275)
    assert any("слов".encode() in piece for piece in tokenizer.id_to_bytes)
    assert tokenizer.decode(tokenizer.encode_text(line)) == line


@pytest.mark.parametrize("num_pieces", [20_000, 262])
def test_train_explains_impossible_vocabulary_sizes(num_pieces: int) -> None:
    with pytest.raises(MisuseError, match=r"--num-pieces"):
        sentencepiece_bpe.train(LINES, num_pieces=num_pieces)


@pytest.mark.parametrize("error", [KeyboardInterrupt, FolioError("a corrupt file")])
def test_train_passes_on_exceptions_of_the_texts(error: type[BaseException] | BaseException) -> None:
    """The trainer turns every exception into a RuntimeError, but Ctrl-C must stay Ctrl-C."""

    def texts() -> Iterator[str]:
        yield from ("some words to learn from " * 3 for _ in range(50))
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        sentencepiece_bpe.train(texts(), num_pieces=300)
