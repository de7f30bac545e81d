"""SentencePiece BPE tokenizers, trained on the training documents of a corpus.

SentencePiece replaces every space by U+2581 before it splits text into pieces, and every U+2581 by
a space when it decodes. A document that already contains U+2581 therefore comes back with spaces in
its place; a build counts such documents. The settings in TRAINING rule out all other changes. Text
is not normalized, no space is put in front of it, and its white space is kept. A character without
a piece is encoded as one piece per byte (`<0x41>`, "byte fallback").

Training is reproducible: the same texts in the same order give the same file, byte for byte. The
trainer writes the number of threads and the paths of its input files into the model, so it runs in
one thread and reads from an iterator.

The trainer silently drops sentences that are too long or that contain U+2585, its internal mark for
word boundaries. `_split_sentences` cuts and cleans the text so that all of it is used.

Models trained elsewhere can be loaded too. If one changes a probe text, `round_trip_issue`
describes the change.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from preprocess.errors import FolioError, MisuseError, first_line, shorten
from preprocess.recipes.schema import MIN_PIECES
from preprocess.tokenizers.interface import (
    PROBE_TEXTS,
    Encoded,
    TwoBackendTokenizer,
    find_round_trip_issue,
    flatten_ids,
    read_tokenizer_file,
)
from preprocess.tokenizers.sentencepiece_model import (
    MAX_REPLACEMENT_BYTES,
    SentencePieceModel,
    measure_longest_replacement,
)

MODEL_FILE = "sentencepiece.model"
SPACE_MARKER = "\u2581"
WORD_BOUNDARY = "\u2585"
PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
MAX_SENTENCE_CHARACTERS = 1 << 20
MAX_PROBED_WORDS = 64  # user-defined pieces in the probe texts
ERRORS_ONLY = 2  # a level of the library's log, which is written to stderr
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
    """The tokenizer of a SentencePiece model, trained by Folio or elsewhere."""

    kind: ClassVar[str] = "sentencepiece"
    reference_backend: ClassVar[str] = "sentencepiece"

    def __init__(self, model: bytes, *, training: dict[str, Any] | None = None) -> None:
        """`model` is the content of a model file; `training` are the trainer's settings, if known.

        Raises RuntimeError or ValueError if `model` is not a SentencePiece model.
        """
        import sentencepiece

        parsed = SentencePieceModel(model)
        _check_model(parsed)
        sentencepiece.set_min_log_level(ERRORS_ONLY)
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        p, ids = self._processor, range(self._processor.get_piece_size())
        self.pad_id, self.unk_id, self.bos_id, self.eot_id = (
            i if i >= 0 else None for i in (p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id())
        )
        self.special_tokens = {p.id_to_piece(i): i for i in ids if p.is_control(i) or p.is_unknown(i)}
        self.id_to_bytes = [self._bytes_of_piece(i) for i in ids]
        self.byte_fallback_ids = [i for i in ids if p.is_byte(i)]
        self.files = {MODEL_FILE: model}
        self.settings = {"num_pieces": len(ids), **(training or {})}
        self.backend = self.reference_backend
        has_all_bytes = len(self.byte_fallback_ids) == 256
        self.can_lose_characters = not has_all_bytes or bool(parsed.charsmap) or parsed.removes_white_space
        self.probe_texts = (*PROBE_TEXTS, *_make_probe_texts(parsed.find_user_defined()))
        self.round_trip_issue = find_round_trip_issue(self, self.probe_texts)

    def _bytes_of_piece(self, i: int) -> bytes:
        if self._processor.is_control(i) or self._processor.is_unknown(i):
            return b""
        piece: str = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[3:5], 16)])  # "<0x41>"
        return piece.replace(SPACE_MARKER, " ").encode()

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        spec = json.loads(tokenizer_class.from_sentencepiece(self.files[MODEL_FILE])._hf_json)
        # gigatoken finds added tokens in text, and lists the control pieces among them.
        # sentencepiece does not find control pieces, and a corpus must not be able to forge them.
        spec["added_tokens"] = []
        return tokenizer_class.from_json(json.dumps(spec))

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode D texts with the library sentencepiece."""
        return flatten_ids(self._processor.encode(texts.to_pylist(), num_threads=1))


def _make_probe_texts(words: list[bytes]) -> Iterator[str]:
    for word in words[:MAX_PROBED_WORDS]:
        text = word.decode("utf-8", "replace").replace(SPACE_MARKER, " ")
        yield f"a{text} {text}  b"


def _check_model(model: SentencePieceModel) -> None:
    """Raise ValueError for a model that could make a text much longer."""
    longest = measure_longest_replacement(model.charsmap)
    if longest > MAX_REPLACEMENT_BYTES:
        raise ValueError(f"it replaces a character by {longest:,} bytes, expected at most {MAX_REPLACEMENT_BYTES}")


def load(path: Path) -> SentencePieceTokenizer:
    """Load the model in the file `path`.

    Raises MisuseError if it does not exist, and FolioError if it is invalid.
    """
    try:
        return SentencePieceTokenizer(read_tokenizer_file(path))
    except (RuntimeError, ValueError) as e:
        raise FolioError(
            f"{path} is not a SentencePiece model ({shorten(first_line(e))}); pass the .model file of its trainer"
        ) from e


def train(texts: Iterable[str], *, num_pieces: int) -> SentencePieceTokenizer:
    """Train a model with exactly `num_pieces` pieces, control pieces included.

    Raises MisuseError if the text has too few distinct words, or too many distinct characters, for
    that number, and FolioError if the trainer fails for another reason. An exception that `texts`
    raises, such as KeyboardInterrupt, is passed on.
    """
    import sentencepiece

    model = io.BytesIO()
    raised: list[BaseException] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_record_exception(_split_sentences(texts), raised),
            model_writer=model,
            vocab_size=num_pieces,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece=PAD, unk_piece=UNK, bos_piece=BOS, eos_piece=EOS,
            num_threads=1,
            max_sentence_length=4 * MAX_SENTENCE_CHARACTERS,  # in bytes; UTF-8 has at most 4 per character
            minloglevel=ERRORS_ONLY,
            **TRAINING,
        )  # fmt: skip
    except RuntimeError as e:
        if raised:
            raise raised[0] from None
        raise _explain_training_error(e, num_pieces) from e
    return SentencePieceTokenizer(model.getvalue(), training=TRAINING)


def _record_exception(sentences: Iterator[str], raised: list[BaseException]) -> Iterator[str]:
    """Yield `sentences`, and append an exception that they raise to `raised`.

    The trainer turns every exception of its iterator, Ctrl-C included, into a RuntimeError.
    """
    try:
        yield from sentences
    except GeneratorExit:
        raise
    except BaseException as e:
        raised.append(e)
        raise


def _split_sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of all texts with their line feeds, cut to the length the trainer accepts."""
    for text in texts:
        for line in text.replace(WORD_BOUNDARY, " ").splitlines(keepends=True):
            for start in range(0, len(line), MAX_SENTENCE_CHARACTERS):
                yield line[start : start + MAX_SENTENCE_CHARACTERS]


def _explain_training_error(error: RuntimeError, num_pieces: int) -> FolioError:
    if limit := re.search(r"value <= (\d+)", str(error)):
        advice = (
            f"pass --num-pieces {limit[1]} or less"
            if int(limit[1]) >= MIN_PIECES
            else "give it more text, or pass --tokenizer byte"
        )
        return MisuseError(f"the training documents have too few distinct words for {num_pieces:,} pieces; {advice}")
    if "required_chars" in str(error) or "smaller than" in str(error):
        return MisuseError(
            f"{num_pieces:,} pieces are too few for the characters of the corpus and 256 bytes; "
            "pass a larger --num-pieces"
        )
    return FolioError(f"SentencePiece could not be trained: {error}")
