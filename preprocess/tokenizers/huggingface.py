"""Tokenizers from a Hugging Face `tokenizer.json`, of any model type.

The library `tokenizers` (the extra `huggingface`) is the reference backend. Only this module
imports it. Three things happen when a file is loaded:

- Templates, truncation, padding and BPE dropout are switched off. They would add tokens to a text,
  cut it, or make its encoding random.
- Control tokens are hidden. The library matches added tokens in text, so the characters `</s>` in a
  document would be encoded as the control token. The control tokens are therefore renamed in the
  copy of the file that the library loads. They are renamed in the vocabulary too, because a Unigram
  or word-level model would match them there.
- The round trip is tested. The bytes of each id follow from the file's decoder. PROBE_TEXTS, and
  texts with the file's added tokens, are encoded and decoded again. `round_trip_issue` describes
  the first text that changes, and a build warns about it.

Byte-level BPE (GPT-2, Llama 3) is lossless. BPE with SentencePiece's conventions (U+2581 for a
space, `<0xNN>` for a byte) is lossless too, except that a U+2581 in a text is decoded to a space.
Decoding is only approximate if the file normalizes text (lower case, NFKC), puts a space in front
of it (Llama 2), or has no fixed bytes for an id (WordPiece and word-level models, which put a space
in front of each word).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from preprocess.documents import divide_texts
from preprocess.errors import FolioError, one_line
from preprocess.tokenizers.encoder_process import EncoderProcess, EncodingError
from preprocess.tokenizers.huggingface_limits import MAX_UNCHECKED_GROWTH, Encode, encode_checked, is_ordinary
from preprocess.tokenizers.huggingface_spec import (
    Spec,
    can_lose_characters,
    compute_growth,
    find_components,
    find_unknown_token,
    is_text_token,
    parse_spec,
    read_vocabulary,
)
from preprocess.tokenizers.interface import (
    FATAL_ERRORS,
    MAX_VOCAB_SIZE,
    PROBE_TEXTS,
    Cuts,
    Encoded,
    TwoBackendTokenizer,
    find_round_trip_issue,
    flatten_ids,
    read_tokenizer_file,
)

JSON_FILE = "tokenizer.json"
# A special token's role follows from its name: the first of these names that the file contains.
EOT_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]", "<｜end▁of▁sentence｜>")
BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]", "<｜begin▁of▁sentence｜>")
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<｜▁pad▁｜>")
UNK_NAMES = ("<unk>", "[UNK]")
MAX_PROBED_TOKENS = 64  # text tokens, and as many control tokens, in the probe texts; a file may have thousands
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
MAX_ENCODED_BYTES = 1 << 20  # of text at once: the library needs 80 bytes of memory for each
# Normalizers that look only at one character and the combining marks after it.
LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"}
VISIBLE_ASCII = " ".join(map(chr, range(0x21, 0x7F)))  # with spaces between them


class HuggingFaceTokenizer(TwoBackendTokenizer):
    """The tokenizer of a tokenizer.json.

    An added token that is marked as special is a control token, and its text is encoded like any
    other text. The other added tokens are found in text, such as a word, or the runs of white space
    of GPT-NeoX. The mark alone is not enough: DeepSeek's file does not mark `<｜User｜>` and
    `<|EOT|>`. So a token in brackets is a control token without the mark too; `unused_words` lists
    these.
    """

    kind: ClassVar[str] = "huggingface"
    reference_backend: ClassVar[str] = "tokenizers"

    def __init__(self, data: bytes) -> None:
        """`data` is the content of the file.

        Raises ValueError (or RecursionError) if it is not a usable tokenizer.json. A hostile file
        cannot run code, and `huggingface_limits` limits the time and memory that it can take.
        """
        spec = strip_extras(parse_spec(data))
        growth = compute_growth(spec)
        vocab, added = read_vocabulary(spec), spec["added_tokens"]
        num_ids = max((*vocab.values(), *(token["id"] for token in added)), default=-1) + 1
        if not 0 < num_ids <= MAX_VOCAB_SIZE:
            raise ValueError(f"it has {num_ids} ids, expected 1 to {MAX_VOCAB_SIZE}")
        self.special_tokens = {token["content"]: token["id"] for token in added if not is_text_token(token)}
        self._assign_roles(find_unknown_token(spec["model"]), vocab)
        self._encode, self._count = _make_encoders(
            spec, self.special_tokens, self.unk_id, with_counter=growth > MAX_UNCHECKED_GROWTH
        )
        self.id_to_bytes = _list_bytes_by_id(spec, vocab, self.special_tokens, num_ids)
        has_byte_alphabet = make_byte_level_alphabet().keys() <= vocab.keys()
        self.is_byte_level = has_byte_alphabet and "ByteLevel" in _component_types(spec, "decoder", "pre_tokenizer")
        self.byte_fallback_ids = (
            [i for token, i in vocab.items() if _BYTE_TOKEN.fullmatch(token)] if _has_byte_fallback(spec) else ()
        )
        self.cuts = _find_cuts(spec)
        has_all_bytes = self.is_byte_level or len(self.byte_fallback_ids) >= 256
        self.can_lose_characters = can_lose_characters(spec, has_all_bytes=has_all_bytes)
        self.unused_words = [t["content"] for t in added if not t.get("special") and not is_text_token(t)]
        self.files = {JSON_FILE: data}
        self.settings = {"model": str(spec["model"].get("type"))}
        self._spec = spec
        # Text may become the unknown token, unless the file uses that token for another role as
        # well.
        allowed = {self.unk_id} - {self.eot_id, self.bos_id, self.pad_id}
        self._is_control = np.zeros(num_ids, bool)
        self._is_control[[i for i in self.special_tokens.values() if i not in allowed]] = True
        self.backend = self.reference_backend
        self.probe_texts = (*PROBE_TEXTS, *_make_probe_texts(added))
        self.round_trip_issue = find_round_trip_issue(self, self.probe_texts)

    def _assign_roles(self, unknown: Any, vocab: dict[str, int]) -> None:
        if isinstance(unknown, str) and unknown in vocab:
            self.special_tokens.setdefault(unknown, vocab[unknown])
        id_of = self.special_tokens
        roles = (EOT_NAMES, BOS_NAMES, PAD_NAMES, (unknown, *UNK_NAMES))
        self.eot_id, self.bos_id, self.pad_id, self.unk_id = (
            next((id_of[name] for name in names if name in id_of), None) for names in roles
        )

    def _make_gigatoken(self, tokenizer_class: Any) -> Any:
        text_tokens = [token for token in self._spec["added_tokens"] if is_text_token(token)]
        return tokenizer_class.from_json(json.dumps(self._spec | {"added_tokens": text_tokens}))

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode D texts with the backend in use.

        If gigatoken gives the id of a control token, the reference encodes the texts again. Raises
        the errors of `encode_reference`.
        """
        if self.has_fast_backend:
            ids, ends = self._fast.encode(texts)
            if not self._is_control[ids].any():
                return ids, ends
        return self.encode_reference(texts)

    def encode_reference(self, texts: pa.LargeStringArray) -> Encoded:
        """Encode D texts with the library `tokenizers`.

        Raises FolioError if the library fails, exceeds the limits of `huggingface_limits`, or turns
        text into a control token.
        """
        ids_of_parts = [np.empty(0, np.uint32)]
        lengths = [np.empty(0, np.int64)]  # of the texts
        for part in divide_texts(texts, MAX_ENCODED_BYTES):
            ids, ends = self._encode_part(part)
            ids_of_parts.append(ids)
            lengths.append(np.diff(ends, prepend=0))
        ids = np.concatenate(ids_of_parts)
        if self._is_control[ids].any():
            control_id = int(ids[np.argmax(self._is_control[ids])])
            name = next(name for name, i in self.special_tokens.items() if i == control_id)
            raise FolioError(f"this {JSON_FILE} turns text into its control token {name!r}; use another tokenizer")
        return ids, np.cumsum(np.concatenate(lengths))

    def _encode_part(self, texts: pa.LargeStringArray) -> Encoded:
        try:
            ids_of_texts = encode_checked(texts.to_pylist(), self._encode, self._count)
        except (FolioError, *FATAL_ERRORS):
            raise
        except BaseException as e:
            raise FolioError(
                f"the library tokenizers could not encode with this {JSON_FILE} ({_describe(e)}); use another tokenizer"
            ) from e
        return flatten_ids(ids_of_texts)


def load(path: Path) -> HuggingFaceTokenizer:
    """Load the tokenizer.json `path`.

    Raises MisuseError if it does not exist, and FolioError if it is invalid.
    """
    data = read_tokenizer_file(path)
    try:
        return HuggingFaceTokenizer(data)
    except (ValueError, RecursionError) as e:
        raise FolioError(f"{path} is not a usable {JSON_FILE} ({e}); pass one that the library tokenizers saved") from e


def _describe(error: BaseException) -> str:
    """Return the library's message on one line and without control characters: it may contain parts of the file."""
    return one_line((str(error).splitlines() or [type(error).__name__])[0][:200])


def strip_extras(spec: Spec) -> Spec:
    """Return `spec` without templates, truncation, padding and dropout."""
    model = spec["model"]
    model = {**model, "dropout": None} if "dropout" in model else model
    return {**spec, "model": model, "post_processor": None, "truncation": None, "padding": None}


def _make_encoders(
    spec: Spec, special_tokens: dict[str, int], unk_id: int | None, *, with_counter: bool
) -> tuple[Encode, Encode | None]:
    """Return functions that encode texts, and that give one id for each character of the normalized texts.

    All special tokens except the unknown one have new names. The second function is None without
    `with_counter`. Raises ValueError if the library rejects the file or gives an added token another id.
    """
    _check_library()
    # Unicode will never assign U+10FFFF. If a text contains a new name anyway, `encode_reference`
    # raises.
    new_names = {name: f"\U0010ffff{i}\U0010ffff" for name, i in special_tokens.items() if i != unk_id}
    renamed = json.dumps(spec | _rename_tokens(spec, new_names))
    in_child = None if is_ordinary(spec) else _start_child(renamed)  # before this process loads the file
    encoder = _load(renamed)
    for token in spec["added_tokens"]:
        name = new_names.get(token["content"], token["content"])
        if encoder.token_to_id(name) != token["id"]:
            raise ValueError(
                f"it gives {token['content']!r} the id {token['id']}, the library reads {encoder.token_to_id(name)}"
            )
    counter = _make_character_counter(encoder) if with_counter else None
    if in_child is None:
        return partial(_encode_here, encoder), None if counter is None else partial(_encode_here, counter)
    return in_child.encode, None if counter is None else _start_child(counter.to_str()).encode


def _start_child(spec: str) -> EncoderProcess:
    """Return a child that encodes with a tokenizer.json. Raises ValueError if the library rejects it there."""
    child = EncoderProcess(spec)
    try:
        child.start()
    except EncodingError as e:
        raise ValueError(_describe(e)) from e
    return child


def _check_library() -> None:
    """Raise FolioError if the library is not installed, which a child could not explain."""
    try:
        import tokenizers  # noqa: F401
    except ImportError as e:
        raise FolioError(
            f"a {JSON_FILE} needs the library tokenizers; install it with `pip install 'folio-lm[huggingface]'`"
        ) from e


def _load(spec: str) -> Any:
    """Return the library's tokenizer. Raises ValueError if the library rejects the file."""
    from tokenizers import Tokenizer

    try:
        encoder = Tokenizer.from_str(spec)
    except FATAL_ERRORS:
        raise
    except BaseException as e:  # the library has no narrower exception
        raise ValueError(_describe(e)) from e
    encoder.encode_special_tokens = True  # do not look for special tokens in text, by their new names either
    return encoder


def _encode_here(encoder: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in encoder.encode_batch_fast(texts, add_special_tokens=False)]


def _make_character_counter(encoder: Any) -> Any:
    """Return a tokenizer that gives one id for each character of the text that `encoder` normalizes."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    counter = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    counter.normalizer = encoder.normalizer
    counter.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return counter


def _rename_tokens(spec: Spec, new_names: dict[str, str]) -> Spec:
    """Return the model and the added tokens with new names, and without the merges of tokens that are renamed."""
    model, vocab = spec["model"], spec["model"]["vocab"]
    added = [{**token, "content": new_names.get(token["content"], token["content"])} for token in spec["added_tokens"]]
    if isinstance(vocab, list):
        entries = [[new_names.get(entry[0], entry[0]), *entry[1:]] for entry in vocab]
        return {"added_tokens": added, "model": {**model, "vocab": entries}}
    model = {**model, "vocab": {new_names.get(token, token): i for token, i in vocab.items()}}
    if merges := model.get("merges"):
        model["merges"] = [merge for merge in merges if not _involves(merge, new_names)]
    return {"added_tokens": added, "model": model}


def _involves(merge: Any, names: dict[str, str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge  # old files have "a b", new ones ["a", "b"]
    return any(part in names for part in parts) or "".join(parts) in names


def _component_types(spec: Spec, *keys: str) -> set[str]:
    return {str(component.get("type")) for component in find_components(spec, *keys)}


def _find_cuts(spec: Spec) -> Cuts:
    """Return where a word always ends, so that no id depends on a cut there."""
    if not all(token.get("special") for token in spec["added_tokens"]):  # others can be found across words
        return "none"
    steps, normalizers = _list_steps(spec, "pre_tokenizer"), _list_steps(spec, "normalizer")
    kinds = [str(step.get("type")) for step in steps]
    if kinds in (["BertPreTokenizer"], ["Whitespace"]) and all(map(_is_local, normalizers)):
        return "spaces"
    if spec["model"].get("type") == "BPE":  # gigatoken, which encodes it, can treat the beginning of a text differently
        return "none"
    if kinds not in (["WhitespaceSplit"], ["WhitespaceSplit", "Metaspace"], ["Metaspace"]):
        return "none"
    # Where Metaspace divides a text, the character that it puts in place of a space is as good as a space.
    dividing = [step for step in steps if step.get("split") is not False]  # WhitespaceSplit has no such key
    spaces = [" ", *(step.get("replacement") for step in dividing if step.get("type") == "Metaspace")]
    return "only_spaces" if dividing and all(_keeps_spaces(each, spaces) for each in normalizers) else "none"


def _list_steps(spec: Spec, key: str) -> list[Spec]:
    """Return the components under `key` in the order in which they are applied, with those inside a Sequence."""
    return [step for step in find_components(spec, key) if step.get("type") != "Sequence"][::-1]


def _is_local(normalizer: Spec) -> bool:
    return str(normalizer.get("type")) in LOCAL_NORMALIZERS


def _keeps_spaces(normalizer: Spec, spaces: list[Any]) -> bool:
    """Return whether a normalizer treats a text that begins with spaces as it does after an ASCII character.

    `spaces`: what it may put in place of several spaces. The tokenizers of T5 and XLM-R have these normalizers.
    """
    kind = normalizer.get("type")
    if kind == "Replace":
        return normalizer.get("pattern") == {"Regex": " {2,}"} and normalizer.get("content") in spaces
    if kind == "Strip":
        return normalizer.get("strip_left") is False
    return _keeps_ascii(normalizer.get("precompiled_charsmap")) if kind == "Precompiled" else _is_local(normalizer)


def _keeps_ascii(charsmap: Any) -> bool:
    """Return whether a map of characters, in base64, changes at most the case of ASCII characters."""
    from tokenizers.normalizers import Precompiled

    try:
        mapped: str = Precompiled(base64.b64decode(charsmap)).normalize_str(VISIBLE_ASCII)
    except FATAL_ERRORS:
        raise
    except BaseException:  # the map is invalid; the library has no narrower exception
        return False
    return mapped.lower() == VISIBLE_ASCII.lower()


def _has_byte_fallback(spec: Spec) -> bool:
    return "ByteFallback" in _component_types(spec, "decoder") or spec["model"].get("byte_fallback") is True


def _list_bytes_by_id(
    spec: Spec, vocab: dict[str, int], special_tokens: dict[str, int], num_ids: int
) -> Sequence[bytes]:
    decode = _make_token_decoder(spec)
    bytes_by_id = [b""] * num_ids
    for token, i in vocab.items():
        bytes_by_id[i] = decode(token)
    for added in spec["added_tokens"]:
        bytes_by_id[added["id"]] = added["content"].encode()  # matched in the text itself, before the model runs
    for i in special_tokens.values():
        bytes_by_id[i] = b""
    return bytes_by_id


def _make_token_decoder(spec: Spec) -> Callable[[str], bytes]:
    """Return a function that decodes a token to bytes, as the file's decoder does."""
    if "ByteLevel" in _component_types(spec, "decoder", "pre_tokenizer"):
        byte_of = make_byte_level_alphabet()
        return lambda token: bytes([byte_of[c] for c in token]) if byte_of.keys() >= set(token) else token.encode()
    decoders = {str(component.get("type")): component for component in find_components(spec, "decoder")}
    if "Metaspace" in decoders or "Replace" in decoders:
        marker = str(decoders.get("Metaspace", {}).get("replacement", "\u2581"))
        has_byte_fallback = _has_byte_fallback(spec)
        return lambda token: _decode_sentencepiece(token, marker, has_byte_fallback=has_byte_fallback)
    if "WordPiece" in decoders:
        prefix = str(decoders["WordPiece"].get("prefix", "##"))
        return lambda token: (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()
    if "BPEDecoder" in decoders:
        suffix = str(decoders["BPEDecoder"].get("suffix", "</w>"))
        return lambda token: (f"{token.removesuffix(suffix)} " if token.endswith(suffix) else token).encode()
    if "Fuse" in decoders:
        return lambda token: token.encode()
    return lambda token: f" {token}".encode()  # without a decoder the library joins tokens by spaces


def _decode_sentencepiece(token: str, space_marker: str, *, has_byte_fallback: bool) -> bytes:
    if has_byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.replace(space_marker, " ").encode()


def make_byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary represents, by character.

    Printable bytes are represented by themselves, the others by the characters from U+0100 on.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _make_probe_texts(added: list[Spec]) -> tuple[str, ...]:
    """Return texts with each added token alone and as a part of a word, as far as they are not too many."""
    text_tokens = [token["content"] for token in added if is_text_token(token)]
    control_tokens = [token["content"] for token in added if not is_text_token(token)]
    probed = text_tokens[:MAX_PROBED_TOKENS] + control_tokens[:MAX_PROBED_TOKENS]
    return tuple(f"a{token} {token}  b" for token in probed)
