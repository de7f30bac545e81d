"""A SentencePiece BPE of one's own, trained on training documents.

Identity normalisation, no dummy prefix, white space kept and byte fallback: decode(encode(text)) is text, U+2581
excepted, with which SentencePiece spells the space.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import pyarrow as pa

from preprocess.errors import FolioError, MisuseError
from preprocess.recipe import MIN_PIECES
from preprocess.tokenizers.interface import Encoded, TwoEngineTokenizer, from_lists

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
_PROBE = ("", " ", "\n\n \n", "a  b\t\tc", "Привет, мир! Hello 123", "<bos> <eos></s> <0x0A>", "日本語 👩‍👩‍👧", "\u00a0x\u200b e\u0301")


class SentencePieceTokenizer(TwoEngineTokenizer):
    kind: ClassVar[str] = "sentencepiece"
    reference_engine: ClassVar[str] = "sentencepiece"
    probe: ClassVar[tuple[str, ...]] = _PROBE

    def __init__(self, model: bytes) -> None:
        """`model`: a serialised SentencePiece ModelProto. Raises RuntimeError where it is none."""
        import sentencepiece

        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        p = self._processor
        self.pad_id, self.unk_id, self.bos_id, self.eot_id = p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id()
        self.special_tokens = {p.id_to_piece(i): i for i in range(p.get_piece_size()) if p.is_control(i) or p.is_unknown(i)}
        self.pieces = [self._piece(i) for i in range(p.get_piece_size())]
        self.files = {MODEL_FILE: model}
        self.settings = {"num_pieces": p.get_piece_size(), **TRAINING}
        self.engine = self.reference_engine

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


def train(texts: Iterable[str], *, num_pieces: int) -> SentencePieceTokenizer:
    """A model of exactly `num_pieces`, control pieces included. Raises MisuseError where the text is too small for it."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
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
        raise _explain(e, num_pieces) from e
    return SentencePieceTokenizer(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their line feeds, cut where one is longer than the trainer takes."""
    for text in texts:
        for line in text.replace(UPP_BOUNDARY, " ").splitlines(keepends=True):
            for start in range(0, len(line), MAX_SENTENCE_CHARACTERS):
                yield line[start : start + MAX_SENTENCE_CHARACTERS]


def _explain(error: RuntimeError, num_pieces: int) -> FolioError:
    if limit := re.search(r"value <= (\d+)", str(error)):
        cure = f"pass --num-pieces {limit[1]} or less" if int(limit[1]) >= MIN_PIECES else "give it more text, or --tokenizer byte"
        return MisuseError(f"the training documents have too few distinct words for {num_pieces:,} pieces; {cure}")
    if "required_chars" in str(error) or "smaller than" in str(error):
        return MisuseError(f"{num_pieces:,} pieces do not even hold the corpus' characters and 256 bytes; pass a larger --num-pieces")
    return FolioError(f"SentencePiece could not be trained: {error}")
