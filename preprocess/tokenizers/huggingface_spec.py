"""Read an untrusted tokenizer.json: check the types of the values, and how much text can grow.

Only the values that Folio reads are checked; the library `tokenizers` checks those that it reads. A
normalizer can replace a character by any text, and the growths of several normalizers multiply: if
three Replace normalizers each give 100 characters for one, a megabyte of text becomes a terabyte.
`compute_growth` limits the product.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from preprocess.shards.files import JsonObject, parse_json
from preprocess.tokenizers.sentencepiece_model import MAX_REPLACEMENT_BYTES, measure_longest_replacement

MAX_JSON_BYTES = 64 << 20  # the largest in use have half of that
MAX_GROWTH = 256  # bytes of normalized text per byte; `compute_growth` returns 33 for SentencePiece's NFKC map
MAX_PREPENDED = 256  # characters
MAX_ADDED = 1_000  # characters of an added token, which the library normalizes when it reads the file
BRACKETS = {("<", ">"), ("[", "]"), ("{", "}"), ("|", "|"), ("｜", "｜")}  # first and last character
KEEPING_STEPS = (
    "Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "ByteLevel", "Metaspace", "Digits", "UnicodeScripts",
)  # fmt: skip
Spec = JsonObject  # a parsed tokenizer.json, or an object in it


def parse_spec(data: bytes) -> Spec:
    """Parse a tokenizer.json.

    Raises ValueError if `data` is too large or not JSON, if there is no model, or if a value that
    Folio reads has another type than expected.
    """
    if len(data) > MAX_JSON_BYTES:  # parsing takes up to twenty times as much memory
        raise ValueError(f"it has {len(data):,} bytes, expected at most {MAX_JSON_BYTES:,}")
    spec = parse_json(data)
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise ValueError("it has no model")
    added = spec["added_tokens"] = spec.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("its added_tokens are not a list of tokens")
    for token in added:
        if not isinstance(token.get("content"), str) or not token["content"] or not _is_id(token.get("id")):
            raise ValueError("it has an added token without content or id")
        if (length := len(token["content"])) > MAX_ADDED:
            raise ValueError(f"it has an added token of {length:,} characters, expected at most {MAX_ADDED:,}")
    if not all(map(_is_merge, _as_list(spec["model"].get("merges")))):
        raise ValueError("its model has a merge that is not two tokens")
    return spec


def read_vocabulary(spec: Spec) -> dict[str, int]:
    """Return the id of each token of the model, by token.

    Unigram models store a list of (token, score), all other models a mapping. Raises ValueError if
    the model has neither.
    """
    vocab = spec["model"].get("vocab")
    if isinstance(vocab, list) and all(
        isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocab
    ):
        return {entry[0]: i for i, entry in enumerate(vocab)}
    if not isinstance(vocab, dict) or not all(_is_id(i) for i in vocab.values()):
        raise ValueError("its model has no vocabulary")
    return vocab


def find_unknown_token(model: Spec) -> str | None:
    """Return the text of the unknown token, or None. Unigram models store its index, all others its text."""
    vocab, index = model["vocab"], model.get("unk_id")
    if isinstance(vocab, list):
        return vocab[index][0] if type(index) is int and 0 <= index < len(vocab) else None
    unknown = model.get("unk_token")
    return unknown if isinstance(unknown, str) else None


def is_text_token(added_token: Spec) -> bool:
    """Return whether an added token is to be found in text: a word or white space, not a control token.

    Some files do not mark all of their control tokens as special, so a token that is written like
    one, such as `<tool>` or `[SEP]`, is a control token in any case.
    """
    return not added_token.get("special") and not looks_like_control(added_token["content"])


def looks_like_control(content: str) -> bool:
    """Return whether an added token is written in brackets, as control tokens are."""
    content = content.strip(" \t\r\n\u2581")
    return len(content) > 2 and (content[0], content[-1]) in BRACKETS


def can_lose_characters(spec: Spec, *, has_all_bytes: bool) -> bool:
    """Return whether some character may be dropped, or encoded by the unknown token.

    `has_all_bytes`: whether the vocabulary has a token for each of the 256 bytes. Unicode's normal
    forms, and the replacement of spaces, do not drop characters.
    """
    steps = [*find_components(spec, "normalizer", "pre_tokenizer")]
    return not has_all_bytes or spec["model"].get("type") != "BPE" or not all(map(_keeps_characters, steps))


def _keeps_characters(step: Spec) -> bool:
    kind = step.get("type")
    if kind in ("Split", "Punctuation"):
        return step.get("behavior") != "Removed"
    if kind == "Replace":
        pattern = step.get("pattern")
        return isinstance(pattern, dict) and pattern.get("String") == " "
    return kind in KEEPING_STEPS


def find_components(spec: Spec, *keys: str) -> Iterator[Spec]:
    """Yield the components under `keys` (decoder, pre_tokenizer, …), and those inside a Sequence."""
    stack = [spec.get(key) for key in keys]
    while stack:
        component = stack.pop()
        if isinstance(component, dict):
            yield component
            for name in ("decoders", "normalizers", "pretokenizers"):
                stack.extend(_as_list(component.get(name)))


def compute_growth(spec: Spec) -> float:
    """Return an upper bound for the bytes that the normalizers make of one byte of text.

    Unicode's normal forms and lower case are not included, because a file cannot choose by how much
    they lengthen text. Raises ValueError if the bound is more than MAX_GROWTH.
    """
    growth = 1.0
    for component in find_components(spec, "normalizer"):
        growth *= max(1.0, _growth_of(component))
    if growth > MAX_GROWTH:
        raise ValueError(f"its normalizers can make a text {growth:,.0f} times as long, expected at most {MAX_GROWTH}")
    return growth


def _growth_of(normalizer: Spec) -> float:
    """Return an upper bound for the bytes that one normalizer makes of one byte. Raises like `compute_growth`."""
    kind = normalizer.get("type")
    if kind == "Replace":
        content, pattern = normalizer.get("content"), normalizer.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        num_bytes = len(content.encode()) if isinstance(content, str) else 0
        # A regular expression can match one byte, or the empty text between any two characters.
        return num_bytes / len(text.encode()) if isinstance(text, str) and text else num_bytes + 1.0
    if kind == "Prepend":
        prefix = normalizer.get("prepend")
        if isinstance(prefix, str) and len(prefix) > MAX_PREPENDED:
            raise ValueError(f"it puts {len(prefix):,} characters before a text, expected at most {MAX_PREPENDED}")
    if kind == "Precompiled":
        return _longest_replacement(normalizer.get("precompiled_charsmap"))
    return 1.0


def _longest_replacement(charsmap: Any) -> int:
    """Return the size in bytes of the longest text that replaces a character.

    Raises ValueError if it is more than MAX_REPLACEMENT_BYTES.
    """
    try:
        longest = measure_longest_replacement(base64.b64decode(charsmap))
    except (TypeError, ValueError):
        return 1  # the library rejects what is not base64
    if longest > MAX_REPLACEMENT_BYTES:
        raise ValueError(f"it replaces a character by {longest:,} bytes, expected at most {MAX_REPLACEMENT_BYTES}")
    return longest


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_merge(value: Any) -> bool:
    """Return whether `value` is "a b", as in old files, or ["a", "b"]."""
    if isinstance(value, list):
        return len(value) == 2 and all(isinstance(part, str) for part in value)
    return isinstance(value, str)
