"""Small tokenizer.json files of every model type, trained with the library `tokenizers`.

Importing this module skips the importing test module if the library is not installed.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from preprocess.tokenizers.huggingface_spec import Spec
from tests.conftest import VERSE

library = pytest.importorskip("tokenizers")

SPECIALS = ["<unk>", "<s>", "</s>", "<|endoftext|>", "[SEP]"]
RUSSIAN = "Мой дядя самых честных правил, когда не в шутку занемог, он уважать себя заставил.\n"
TRAINING_TEXT = [VERSE, RUSSIAN, "def f(x):\n    return x ** 2  # 12345\n"] * 20


def parse(tokenizer: Any) -> Spec:
    spec: Spec = json.loads(tokenizer.to_str())
    return spec


def byte_level() -> Spec:
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.add_tokens([library.AddedToken("    ", normalized=False), library.AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    return parse(tokenizer)


def byte_fallback() -> Spec:
    """Return a model with SentencePiece's conventions: U+2581 for a space, `<0xNN>` for a byte."""
    tokenizer = library.Tokenizer(library.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = library.normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = library.decoders.Sequence(
        [library.decoders.Replace("\u2581", " "), library.decoders.ByteFallback(), library.decoders.Fuse()]
    )
    pieces = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256))]
    tokenizer.train_from_iterator(
        TRAINING_TEXT[:1], library.trainers.BpeTrainer(vocab_size=350, special_tokens=pieces, show_progress=False)
    )
    spec = parse(tokenizer)
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in SPECIALS]
    return spec


def unigram() -> Spec:
    tokenizer = library.Tokenizer(library.models.Unigram())
    tokenizer.normalizer = library.normalizers.NFKC()
    tokenizer.pre_tokenizer = library.pre_tokenizers.Metaspace()
    tokenizer.decoder = library.decoders.Metaspace()
    trainer = library.trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return parse(tokenizer)


def word_piece() -> Spec:
    tokenizer = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        TRAINING_TEXT, library.trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    return parse(tokenizer)


def word_level() -> Spec:
    vocab = {"[UNK]": 0, "[SEP]": 1, "Romeo,": 2, "thou": 3}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[SEP]"])
    return parse(tokenizer)


MAKERS = {f.__name__: f for f in (byte_level, byte_fallback, unigram, word_piece, word_level)}


def to_bytes(spec: Spec) -> bytes:
    """Return the file of a parsed tokenizer.json."""
    return json.dumps(spec, ensure_ascii=False).encode()
