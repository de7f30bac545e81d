"""The vocabulary of a GGUF file. test_export_gguf.py compares it with llama.cpp."""

from __future__ import annotations

from typing import Any

import pytest

from preprocess.errors import FolioError
from train.run.gguf_vocabulary import MARK_SPACES, make_vocabulary

BYTES = {f"<0x{b:02X}>": b for b in range(256)}
CONTROL = [{"id": 261, "content": "<unk>"}, {"id": 263, "content": "<eos>"}]
PIECES: dict[str, Any] = {
    "normalizer": {"type": "Sequence", "normalizers": [MARK_SPACES]},
    "pre_tokenizer": None,
    "model": {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "vocab": BYTES | {"ab": 256, "\u2581ab": 257, "a": 258, "b": 259, "\u2581": 260, "<unk>": 261},
        "merges": [["a", "b"], ["\u2581", "ab"], ["\u2581a", "b"]],
    },
    "added_tokens": CONTROL,
}
GPT2: dict[str, Any] = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\U0010ffff3": 3}, "merges": ["a b"]},
    "added_tokens": [{"id": 4, "content": "<|endoftext|>"}],
}


def test_vocabulary_of_sentencepiece_has_types_and_scores_in_the_order_of_the_merges() -> None:
    made = make_vocabulary(PIECES, 264)
    assert (made.model, made.pre, made.merges) == ("llama", "default", [])
    assert made.tokens[254:] == [
        "<0xFE>", "<0xFF>", "ab", "\u2581ab", "a", "b", "\u2581", "<unk>", "[UNUSED262]", "<eos>",
    ]  # fmt: skip
    assert made.types[254:] == ["BYTE"] * 2 + ["NORMAL"] * 5 + ["UNKNOWN", "UNUSED", "CONTROL"]
    assert made.scores[256:258] == [0.0, -1.0] and len(made.scores) == 264


def test_vocabulary_of_gpt2_has_its_merges() -> None:
    made = make_vocabulary(GPT2, 5)
    assert (made.model, made.pre, made.merges, made.scores) == ("gpt2", "gpt-2", ["a b"], [])
    assert made.tokens == ["a", "b", "ab", "[UNUSED3]", "<|endoftext|>"]
    assert made.types == ["NORMAL", "NORMAL", "NORMAL", "UNUSED", "CONTROL"]


@pytest.mark.parametrize(
    ("spec", "fields", "model_fields"),
    [
        (PIECES, {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, MARK_SPACES]}}, {}),
        (PIECES, {}, {"byte_fallback": False}),
        (PIECES, {}, {"vocab": {"a": 0}}),
        (PIECES, {}, {"type": "Unigram"}),
        (PIECES, {"pre_tokenizer": {"type": "Split"}}, {}),
        (GPT2, {"pre_tokenizer": {"type": "ByteLevel", "use_regex": True}}, {}),
        (GPT2, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, {}),
        (GPT2, {"normalizer": {"type": "NFC"}}, {}),
        (GPT2, {}, {"merges": []}),
    ],
)
def test_tokenizer_that_llama_cpp_does_not_have_is_an_error(
    spec: dict[str, Any], fields: dict[str, Any], model_fields: dict[str, Any]
) -> None:
    changed = spec | fields | {"model": spec["model"] | model_fields}
    with pytest.raises(FolioError, match="--format gguf needs a tokenizer that divides text as GPT-2's does, or one"):
        make_vocabulary(changed, 264)


def test_piece_that_no_merge_makes_is_an_error() -> None:
    changed = PIECES | {"model": PIECES["model"] | {"merges": [["a", "b"]]}}
    with pytest.raises(FolioError, match="no two pieces of this tokenizer make its piece '▁ab', as llama.cpp needs"):
        make_vocabulary(changed, 264)
