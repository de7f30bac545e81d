"""Any Hugging Face `tokenizer.json`: the library `tokenizers` decides what is right, gigatoken encodes where it agrees.

The only file that imports `tokenizers` (the extra `huggingface`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.shards.files import parse_json
from preprocess.tokenizers.interface import (
    FATAL,
    MAX_VOCAB_SIZE,
    PROBE,
    Encoded,
    TwoBackendTokenizer,
    find_loss,
    from_lists,
    read_bounded,
)

JSON_FILE = "tokenizer.json"
# Which special token plays which part: the first of these that the file has.
EOT_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]", "<｜end▁of▁sentence｜>")
BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]", "<｜begin▁of▁sentence｜>")
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<｜▁pad▁｜>")
UNK_NAMES = ("<unk>", "[UNK]")
MAX_PROBED_TOKENS = 64  # added tokens of each sort that go into the probe; a file may have thousands, all alike
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class HuggingFaceTokenizer(TwoBackendTokenizer):
    """The tokenizer of a tokenizer.json, its control tokens invisible to text and its template, cuts and padding off.

    Every added token is a control token but runs of white space that are not marked special (GPT-NeoX's). The mark
    alone is not enough: DeepSeek's file leaves `<｜User｜>` and `<|EOT|>` unmarked. Text that spells one is therefore
    encoded as other text is, where the library itself would find the token. Control tokens are renamed for the encoder,
    in its vocabulary too, since a Unigram or word-level model would find them there.

    `pieces` are exact for byte-level BPE and for SentencePiece's spelling (U+2581, `<0xNN>`). Where a model normalises
    (lower case, NFKC), puts a space in front (Llama 2), or has no fixed bytes for an id (WordPiece, word-level: a space
    is put in front of each word), decoding is approximate, and `loss` says what the probe text lost.
    """

    kind: ClassVar[str] = "huggingface"
    reference_backend: ClassVar[str] = "tokenizers"

    def __init__(self, data: bytes) -> None:
        """`data`: the file's bytes. Raises ValueError (or RecursionError) where it is no tokenizer.json that can be used.

        A hostile file may hold a regular expression that takes exponential time on some text; it cannot run anything.
        """
        described = _plain(_parse(data))
        vocab, added = _vocabulary(described), described["added_tokens"]
        num_ids = max((*vocab.values(), *(token["id"] for token in added)), default=-1) + 1
        if not 0 < num_ids <= MAX_VOCAB_SIZE:
            raise ValueError(f"it has {num_ids} ids, wanted 1 to {MAX_VOCAB_SIZE}")
        self.special_tokens = {token["content"]: token["id"] for token in added if not _is_text(token)}
        self._name_parts(_unknown(described["model"]), vocab)
        self._encoder = _make_encoder(described, self.special_tokens, self.unk_id)
        self.pieces = _pieces(described, vocab, self.special_tokens, num_ids)
        self.is_byte_level = "ByteLevel" in _types(described, "decoder", "pre_tokenizer")
        self.fallback_ids = (
            [i for text, i in vocab.items() if _BYTE_PIECE.fullmatch(text)] if _falls_back(described) else ()
        )
        self.files = {JSON_FILE: data}
        self.settings = {"model": str(described["model"].get("type"))}
        self._described = described
        # Text that nothing spells becomes the unknown token, and may, unless the file has given it another part as well.
        harmless = {self.unk_id} - {self.eot_id, self.bos_id, self.pad_id}
        self._is_control = np.zeros(num_ids, bool)
        self._is_control[[i for i in self.special_tokens.values() if i not in harmless]] = True
        self.engine = self.reference_backend
        self.probe = (*PROBE, *_texts_with_added(added))
        self.loss = find_loss(self, self.probe)

    def _name_parts(self, unknown: Any, vocab: dict[str, int]) -> None:
        if isinstance(unknown, str) and unknown in vocab:
            self.special_tokens.setdefault(unknown, vocab[unknown])
        has = self.special_tokens
        parts = (EOT_NAMES, BOS_NAMES, PAD_NAMES, (unknown, *UNK_NAMES))
        self.eot_id, self.bos_id, self.pad_id, self.unk_id = (
            next((has[name] for name in names if name in has), None) for names in parts
        )

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        # gigatoken would find control tokens in text.
        text_tokens = [token for token in self._described["added_tokens"] if _is_text(token)]
        return tokenizer_class.from_json(json.dumps(self._described | {"added_tokens": text_tokens}))

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """As the interface says. A batch in which gigatoken finds a control token is encoded by the reference."""
        if self.has_fast_backend:
            ids, ends = self._fast.encode(texts)
            if not self._is_control[ids].any():
                return ids, ends
        return self.encode_reference(texts)

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        """Raises FolioError where the model itself turns text into a control token."""
        try:
            encoded = self._encoder.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        except FATAL:
            raise
        except BaseException as e:
            raise FolioError(
                f"the library tokenizers could not encode with this {JSON_FILE} ({str(e)[:200]}); use another"
            ) from e
        ids, ends = from_lists([one.ids for one in encoded])
        if self._is_control[ids].any():
            i = int(ids[np.argmax(self._is_control[ids])])
            name = next(name for name, special in self.special_tokens.items() if special == i)
            raise FolioError(f"this {JSON_FILE} turns text into its control token {name!r}; use another")
        return ids, ends


def load(path: Path) -> HuggingFaceTokenizer:
    """The tokenizer of the file `path`. Raises MisuseError where there is none, FolioError where it is no tokenizer.json."""
    data = read_bounded(path)
    try:
        return HuggingFaceTokenizer(data)
    except (ValueError, RecursionError) as e:
        raise FolioError(
            f"{path} is no {JSON_FILE} that can be used ({e}); wanted one that the library tokenizers saved"
        ) from e


def _parse(data: bytes) -> dict[str, Any]:
    """The described tokenizer, its added tokens checked. Raises ValueError."""
    described = parse_json(data)
    if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
        raise ValueError("it has no model")
    added = described["added_tokens"] = described.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("its added_tokens are no list of tokens")
    for token in added:
        if not isinstance(token.get("content"), str) or not token["content"] or not _is_id(token.get("id")):
            raise ValueError("it has an added token without content or id")
    return described


def _vocabulary(described: dict[str, Any]) -> dict[str, int]:
    """Text of each piece → id; Unigram models have a list of (text, score), all others a mapping. Raises ValueError."""
    vocab = described["model"].get("vocab")
    if isinstance(vocab, list) and all(
        isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocab
    ):
        return {entry[0]: i for i, entry in enumerate(vocab)}
    if not isinstance(vocab, dict) or not all(_is_id(i) for i in vocab.values()):
        raise ValueError("its model has no vocabulary")
    return vocab


def _unknown(model: dict[str, Any]) -> Any:
    """The text of the token for what nothing spells: named, or by its place in a Unigram vocabulary."""
    vocab, place = model["vocab"], model.get("unk_id")
    if isinstance(vocab, list):
        return vocab[place][0] if isinstance(place, int) and 0 <= place < len(vocab) else None
    return model.get("unk_token")


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(added_token: dict[str, Any]) -> bool:
    return not added_token.get("special") and not added_token["content"].strip(" \t\r\n\u2581")


def _plain(described: dict[str, Any]) -> dict[str, Any]:
    """Without what adds, cuts, pads or draws lots: control tokens are placed by id, and one text has one encoding."""
    model = described["model"]
    model = {**model, "dropout": None} if "dropout" in model else model
    return {**described, "model": model, "post_processor": None, "truncation": None, "padding": None}


def _make_encoder(described: dict[str, Any], special_tokens: dict[str, int], unk_id: int | None) -> Any:
    try:
        import tokenizers
    except ImportError as e:
        raise FolioError(
            f"a {JSON_FILE} is read by the library tokenizers; install it with `pip install 'folio-lm[huggingface]'`"
        ) from e
    # With a character that Unicode will never assign. A model that finds one in text all the same: see encode_reference.
    hidden = {name: f"\U0010ffff{i}\U0010ffff" for name, i in special_tokens.items() if i != unk_id}
    renamed = json.dumps(described | _renamed(described, hidden))
    try:
        encoder = tokenizers.Tokenizer.from_str(renamed)
    except FATAL:
        raise
    except BaseException as e:  # the library raises nothing narrower
        raise ValueError(str(e)[:200]) from e
    encoder.encode_special_tokens = True  # as text, in case it spells even a new name
    for token in described["added_tokens"]:
        name = hidden.get(token["content"], token["content"])
        if encoder.token_to_id(name) != token["id"]:
            raise ValueError(
                f"it gives {token['content']!r} the id {token['id']}, the library reads {encoder.token_to_id(name)}"
            )
    return encoder


def _renamed(described: dict[str, Any], hidden: dict[str, str]) -> dict[str, Any]:
    """Model and added tokens with every name in `hidden` replaced, and no merge that makes or takes one of them."""
    model, vocab = described["model"], described["model"]["vocab"]
    added = [
        {**token, "content": hidden.get(token["content"], token["content"])} for token in described["added_tokens"]
    ]
    if isinstance(vocab, list):
        return {
            "added_tokens": added,
            "model": {**model, "vocab": [[hidden.get(entry[0], entry[0]), *entry[1:]] for entry in vocab]},
        }
    model = {**model, "vocab": {hidden.get(text, text): i for text, i in vocab.items()}}
    if merges := model.get("merges"):
        model["merges"] = [merge for merge in merges if not _touches(merge, hidden)]
    return {"added_tokens": added, "model": model}


def _touches(merge: Any, hidden: dict[str, str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge  # old files: "a b"; new ones: ["a", "b"]
    return any(part in hidden for part in parts) or "".join(parts) in hidden


def _components(described: dict[str, Any], *places: str) -> Iterator[dict[str, Any]]:
    """Every decoder or pre-tokenizer at `places`, those in a Sequence too."""
    waiting = [described.get(place) for place in places]
    while waiting:
        component = waiting.pop()
        if isinstance(component, dict):
            yield component
            for name in ("decoders", "pretokenizers"):
                waiting.extend(component[name] if isinstance(component.get(name), list) else [])


def _types(described: dict[str, Any], *places: str) -> set[str]:
    return {str(component.get("type")) for component in _components(described, *places)}


def _falls_back(described: dict[str, Any]) -> bool:
    return "ByteFallback" in _types(described, "decoder") or described["model"].get("byte_fallback") is True


def _pieces(
    described: dict[str, Any], vocab: dict[str, int], special_tokens: dict[str, int], num_ids: int
) -> Sequence[bytes]:
    spell = _speller(described)
    pieces = [b""] * num_ids
    for text, i in vocab.items():
        pieces[i] = spell(text)
    for token in described["added_tokens"]:
        pieces[token["id"]] = token["content"].encode()  # found as it is written, whatever the model's spelling
    for i in special_tokens.values():
        pieces[i] = b""
    return pieces


def _speller(described: dict[str, Any]) -> Callable[[str], bytes]:
    """How a piece's text becomes the bytes it stands for, by the file's decoder."""
    if "ByteLevel" in _types(described, "decoder", "pre_tokenizer"):
        byte_of = byte_alphabet()
        return lambda text: bytes([byte_of[c] for c in text]) if byte_of.keys() >= set(text) else text.encode()
    decoders = {str(component.get("type")): component for component in _components(described, "decoder")}
    if "Metaspace" in decoders or "Replace" in decoders:
        space = str(decoders.get("Metaspace", {}).get("replacement", "\u2581"))
        falls_back = _falls_back(described)
        return lambda text: _format_spaced(text, space, falls_back=falls_back)
    if "WordPiece" in decoders:
        prefix = str(decoders["WordPiece"].get("prefix", "##"))
        return lambda text: (text.removeprefix(prefix) if text.startswith(prefix) else f" {text}").encode()
    if "BPEDecoder" in decoders:
        suffix = str(decoders["BPEDecoder"].get("suffix", "</w>"))
        return lambda text: (f"{text.removesuffix(suffix)} " if text.endswith(suffix) else text).encode()
    return lambda text: f" {text}".encode()  # no decoder: the library puts a space between tokens


def _format_spaced(text: str, space: str, *, falls_back: bool) -> bytes:
    if falls_back and (byte := _BYTE_PIECE.fullmatch(text)):
        return bytes([int(byte[1], 16)])
    return text.replace(space, " ").encode()


def byte_alphabet() -> dict[str, int]:
    """The character that spells each byte in a byte-level vocabulary: printable ones themselves, the others from U+0100 on."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _texts_with_added(added: list[dict[str, Any]]) -> tuple[str, ...]:
    sorts = (
        [token["content"] for token in added if _is_text(token) == wanted][:MAX_PROBED_TOKENS]
        for wanted in (True, False)
    )
    return tuple(f"a{text} {text}  b" for texts in sorts for text in texts)
