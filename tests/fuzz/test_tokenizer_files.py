"""Damaged tokenizer files are refused in one line, or encode and decode."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as protobuf

from preprocess.errors import FolioError
from preprocess.tokenizers import load_tokenizer_by_name, make_tokenizer_entry, sentencepiece_bpe, tiktoken_bpe
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.to_huggingface import make_huggingface_files
from tests.fuzz.harness import assert_no_failure, fuzz
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.helpers.manifests import make_manifest
from tests.preprocess.tokenizers.helpers import LINES
from tests.preprocess.tokenizers.json_makers import MAKERS, to_bytes

TEXTS = [
    "Deny thy father, and refuse thy name; 12345\n", "Привет  мир! </s> <0x0A> ", "",
    "日本語 \U0001f469\u200d\U0001f467 \x00", "a" * 3000,
]  # fmt: skip


def use_tokenizer(path: Path) -> None:
    """Encode and decode with the tokenizer at `path`, and export it for Hugging Face."""
    tokenizer = load_tokenizer_by_name(str(path))
    texts = pa.array(TEXTS, pa.large_string())
    tokenizer.start_fast_backend()
    for encode in (tokenizer.encode_reference, tokenizer.encode):
        ids, ends = encode(texts)
        assert len(ends) == len(TEXTS)
        tokenizer.decode(ids)
    try:
        export_tokenizer(path, tokenizer)
    except FolioError as e:  # many tokenizers cannot be exported
        assert "\n" not in str(e)


def export_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    folder = path.parent / "stored"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tokenizer").mkdir(parents=True)
    for name, data in tokenizer.files.items():
        (folder / "tokenizer" / name).write_bytes(data)
    manifest = make_manifest(
        tokenizer=make_tokenizer_entry(tokenizer), vocab_size=tokenizer.vocab_size + 1, eot_id=tokenizer.eot_id,
        bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id, unk_id=tokenizer.unk_id,
        special_tokens={**tokenizer.special_tokens, "<author_X>": tokenizer.vocab_size},
    )  # fmt: skip
    make_huggingface_files(folder, manifest, model_max_length=100)


def make_json_files() -> list[bytes]:
    return [to_bytes(make()) for make in MAKERS.values()]


def make_sentencepiece_models() -> list[bytes]:
    """Return a BPE model as Folio trains it and a unigram model."""
    unigram = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=unigram, vocab_size=54, model_type="unigram", pad_id=-1,
        minloglevel=2,
    )  # fmt: skip
    bpe = sentencepiece_bpe.train(LINES * 20, num_pieces=320).files["sentencepiece.model"]
    return [bpe, unigram.getvalue()]


def make_tiktoken_files() -> list[bytes]:
    lines = tiktoken_bpe.load("gpt2").files["gpt2.tiktoken"].splitlines(keepends=True)
    return [b"".join(lines[:600])]


def mutate_sentencepiece(data: bytes, random_: random.Random) -> bytes:
    """Change fields of pieces and settings so that the message remains valid, or damage bytes."""
    if random_.random() < 0.4:
        return mutate_bytes(data, random_)
    model = protobuf.ModelProto.FromString(data)
    for _ in range(random_.choice((1, 1, 2, 3))):
        random_.choice((_change_piece, _change_piece, _change_list_of_pieces, _change_settings))(model, random_)
    return bytes(model.SerializeToString())


def _change_piece(model: Any, random_: random.Random) -> None:
    piece = random_.choice(model.pieces)
    odd_pieces = ("", "a", "\u2581", "<0xZZ>", "<0x41>", "x" * 100_000, "\0", "<unk>", "<s>")
    field, values = random_.choice(
        [
            ("type", (1, 2, 3, 4, 5, 6)),
            ("score", (0.0, -1e30, 1e30, float("nan"), float("inf"), -float("inf"), piece.score + 1)),
            ("piece", (*odd_pieces, random_.choice(model.pieces).piece)),
        ]
    )
    setattr(piece, field, random_.choice(values))


def _change_list_of_pieces(model: Any, random_: random.Random) -> None:
    if random_.random() < 0.5:
        del model.pieces[random_.randrange(len(model.pieces))]
    else:
        model.pieces.append(random_.choice(model.pieces))


def _change_settings(model: Any, random_: random.Random) -> None:
    settings, values = random_.choice(
        [
            (("model_type",), (1, 2, 3, 4)),
            (("unk_id", "bos_id", "eos_id", "pad_id", "vocab_size"), (-1, 0, 1, 10**6)),
            (("unk_piece", "bos_piece", "eos_piece", "pad_piece", "unk_surface"), ("", "a", "<unk>", "x" * 1000)),
        ]
    )
    setattr(model.trainer_spec, random_.choice(settings), random_.choice(values))
    if random_.random() < 0.3:
        model.normalizer_spec.precompiled_charsmap = random_.randbytes(random_.choice((0, 3, 4, 8, 100, 5000)))


KINDS: dict[str, tuple[str, Callable[[], list[bytes]], Any]] = {
    "json": ("tokenizer.json", make_json_files, mutate_json),
    "sentencepiece": ("sentencepiece.model", make_sentencepiece_models, mutate_sentencepiece),
    "tiktoken": ("gpt2.tiktoken", make_tiktoken_files, mutate_bytes),
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_tokenizers_are_refused_in_one_line(
    kind: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    name, make, mutate = KINDS[kind]
    assert_no_failure(fuzz(use_tokenizer, tmp_path / name, make(), mutate), record_property)
