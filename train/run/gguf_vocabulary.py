"""The vocabulary of a GGUF file, made from a tokenizer.json.

llama.cpp has its own tokenizers and reads only their tables. Two of them can give the ids of a
tokenizer of Folio:

- `gpt2`: a byte-level BPE with GPT-2's way of dividing a text into words. Its table is the list of
  merges.
- `llama`: SentencePiece's BPE with byte fallback. Its table has a score for each piece, and of all
  neighbours it merges those whose concatenation has the highest score. A tokenizer.json has merges
  in the order of the scores instead, so the place of a piece's first merge, negated, is its score.

Control tokens have the type CONTROL. llama.cpp finds them in a text only if a program asks for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from preprocess.errors import FolioError
from preprocess.shards.files import JsonObject

SPACE_MARKER = "\u2581"
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")
UNUSED_MARK = "\U0010ffff"  # the names of unused ids begin with it
GPT2_PRE_TOKENIZER = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}
MARK_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARKER}
SENTENCEPIECE_NORMALIZER = {"type": "Sequence", "normalizers": [MARK_SPACES]}
ADVICE = "use --format huggingface, or build with --tokenizer gpt2 or --tokenizer sentencepiece"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file, by id. `model` and `pre` are llama.cpp's names of the tokenizer."""

    model: str
    pre: str
    tokens: list[str]
    types: list[str]  # names of members of gguf.TokenType
    merges: list[str]  # of `gpt2`
    scores: list[float]  # of `llama`


def make_vocabulary(spec: JsonObject, vocab_size: int) -> Vocabulary:
    """Return the vocabulary of the tokenizer that `spec`, a tokenizer.json, describes.

    Raises FolioError if none of llama.cpp's tokenizers is known to give the same ids.
    """
    is_gpt2 = _is_gpt2(spec)
    if not is_gpt2 and not _is_sentencepiece(spec):
        raise FolioError(
            "--format gguf needs a tokenizer that divides text as GPT-2's does, or one that SentencePiece trained "
            f"without normalization, and this run has another; {ADVICE}"
        )
    text_of = {i: text for text, i in spec["model"]["vocab"].items()}
    control = {token["id"]: token["content"] for token in spec["added_tokens"]}
    unk_token = None if is_gpt2 else spec["model"].get("unk_token")
    tokens, types = [], []
    for i in range(vocab_size):
        text = control.get(i, text_of.get(i, UNUSED_MARK))
        if i in control:
            kind = "UNKNOWN" if text == unk_token else "CONTROL"
        elif text.startswith(UNUSED_MARK):
            text, kind = f"[UNUSED{i}]", "UNUSED"
        else:
            kind = "BYTE" if not is_gpt2 and BYTE_PIECE.fullmatch(text) else "NORMAL"
        tokens.append(text)
        types.append(kind)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in spec["model"]["merges"]]
    if is_gpt2:
        return Vocabulary("gpt2", "gpt-2", tokens, types, [" ".join(pair) for pair in merges], [])
    return Vocabulary("llama", "default", tokens, types, [], _make_scores(tokens, types, merges))


def _is_gpt2(spec: JsonObject) -> bool:
    pre_tokenizer = {"use_regex": True, "add_prefix_space": True} | (spec.get("pre_tokenizer") or {})
    return (
        spec["model"].get("type") == "BPE"
        and spec.get("normalizer") is None
        and {key: pre_tokenizer.get(key) for key in GPT2_PRE_TOKENIZER} == GPT2_PRE_TOKENIZER
        and len(spec["model"]["merges"]) > 0
    )


def _is_sentencepiece(spec: JsonObject) -> bool:
    model = spec["model"]
    return (
        model.get("type") == "BPE"
        and spec.get("normalizer") == SENTENCEPIECE_NORMALIZER
        and spec.get("pre_tokenizer") is None
        and model.get("byte_fallback") is True
        and sum(bool(BYTE_PIECE.fullmatch(text)) for text in model["vocab"]) == 256
    )


def _make_scores(tokens: list[str], types: list[str], merges: list[list[str]]) -> list[float]:
    """Return the score of each token. Nothing is merged into a single character, so it may have any score."""
    place_of: dict[str, int] = {}
    for place, (first, second) in enumerate(merges):
        place_of.setdefault(first + second, place)
    for text, kind in zip(tokens, types, strict=True):
        if kind == "NORMAL" and len(text) > 1 and text not in place_of:
            raise FolioError(
                f"no two pieces of this tokenizer make its piece {text!r:.40}, as llama.cpp needs; {ADVICE}"
            )
    return [-float(place_of.get(text, 0)) for text in tokens]
