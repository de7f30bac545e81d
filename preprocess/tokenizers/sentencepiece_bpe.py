"""A SentencePiece BPE of one's own, trained on training documents.

Identity normalisation, no dummy prefix, white space kept and byte fallback: decode(encode(text)) is text, U+2581
excepted, with which SentencePiece spells the space.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.schema import MIN_PIECES
from preprocess.tokenizers.interface import Encoded, TwoBackendTokenizer, find_loss, from_lists, read_bounded

MODEL_FILE = "sentencepiece.model"
SPACE = "\u2581"
PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
# The trainer drops a sentence longer than max_sentence_length bytes: documents are cut to lines, and lines to this.
MAX_SENTENCE_CHARACTERS = 1 << 20
# The trainer's own mark between words; it drops, without a word, every sentence that holds one.
UPP_BOUNDARY = "\u2585"
TRAINING: dict[str, Any] = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "split_by_unicode_script": True,
    "character_coverage": 0.9995,
}


class SentencePieceTokenizer(TwoBackendTokenizer):
    kind: ClassVar[str] = "sentencepiece"
    reference_backend: ClassVar[str] = "sentencepiece"

    def __init__(self, model: bytes, *, training: dict[str, Any] | None = None) -> None:
        """`model`: a serialised SentencePiece ModelProto, ours or another's; `training`: what it was trained with, if known.

        Another's may normalise, put a space in front, or know characters it cannot spell: `loss` then says so, and
        decoding gives what the pieces spell. Raises RuntimeError where it is no model.
        """
        import sentencepiece

        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        p, ids = self._processor, range(self._processor.get_piece_size())
        self.pad_id, self.unk_id, self.bos_id, self.eot_id = (
            _or_none(i) for i in (p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id())
        )
        self.special_tokens = {p.id_to_piece(i): i for i in ids if p.is_control(i) or p.is_unknown(i)}
        self.pieces = [self._piece(i) for i in ids]
        self.fallback_ids = [i for i in ids if p.is_byte(i)]
        self.files = {MODEL_FILE: model}
        self.settings = {"num_pieces": len(ids), **(training or {})}
        self.engine = self.reference_backend
        self.loss = find_loss(self, self.probe)

    def _piece(self, i: int) -> bytes:
        if self._processor.is_control(i) or self._processor.is_unknown(i):
            return b""
        piece: str = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        described = json.loads(tokenizer_class.from_sentencepiece(self.files[MODEL_FILE])._hf_json)
        # gigatoken takes control pieces for text to be found; sentencepiece does not, and a corpus must not forge them.
        described["added_tokens"] = []
        return tokenizer_class.from_json(json.dumps(described))

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        return from_lists(self._processor.encode(texts.to_pylist(), num_threads=1))


def _or_none(i: int) -> int | None:
    return i if i >= 0 else None  # SentencePiece says -1 for a control piece that a model lacks


def load(path: Path) -> SentencePieceTokenizer:
    """The model in the file `path`. Raises FolioError where it is none."""
    try:
        return SentencePieceTokenizer(read_bounded(path))
    except RuntimeError as e:
        raise FolioError(f"{path} is no SentencePiece model; wanted the .model file that its trainer wrote") from e


def train(texts: Iterable[str], *, num_pieces: int) -> SentencePieceTokenizer:
    """A model of exactly `num_pieces`, control pieces included. Raises MisuseError where the text is too small for it."""
    import sentencepiece

    model = io.BytesIO()
    raised: list[BaseException] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_noted(_sentences(texts), raised),
            model_writer=model,
            vocab_size=num_pieces,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece=PAD, unk_piece=UNK, bos_piece=BOS, eos_piece=EOS,
            num_threads=1,  # it is written into the model's bytes
            max_sentence_length=4 * MAX_SENTENCE_CHARACTERS,
            minloglevel=2,
            **TRAINING,
        )  # fmt: skip
    except RuntimeError as e:
        if raised:
            raise raised[0] from None  # such as Ctrl-C, of which the trainer makes a RuntimeError
        raise _explain(e, num_pieces) from e
    return SentencePieceTokenizer(model.getvalue(), training=TRAINING)


def _noted(sentences: Iterator[str], raised: list[BaseException]) -> Iterator[str]:
    """`sentences`, and in `raised` what ended them before their end."""
    try:
        yield from sentences
    except GeneratorExit:
        raise
    except BaseException as e:
        raised.append(e)
        raise


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their line feeds, cut where one is longer than the trainer takes."""
    for text in texts:
        for line in text.replace(UPP_BOUNDARY, " ").splitlines(keepends=True):
            for start in range(0, len(line), MAX_SENTENCE_CHARACTERS):
                yield line[start : start + MAX_SENTENCE_CHARACTERS]


def _explain(error: RuntimeError, num_pieces: int) -> FolioError:
    if limit := re.search(r"value <= (\d+)", str(error)):
        cure = (
            f"pass --num-pieces {limit[1]} or less"
            if int(limit[1]) >= MIN_PIECES
            else "give it more text, or --tokenizer byte"
        )
        return MisuseError(f"the training documents have too few distinct words for {num_pieces:,} pieces; {cure}")
    if "required_chars" in str(error) or "smaller than" in str(error):
        return MisuseError(
            f"{num_pieces:,} pieces do not even hold the corpus' characters and 256 bytes; pass a larger --num-pieces"
        )
    return FolioError(f"SentencePiece could not be trained: {error}")
