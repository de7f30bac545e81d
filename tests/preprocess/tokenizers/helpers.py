"""What several tests of tokenizers share."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st

ADDED_TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
CONTROL_TOKEN_NAMES = (
    "<|endoftext|>",
    "<author_William_Shakespeare>",
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "</s>",
    "<0x41>",
    "<year_1623>",
)
LINES = [
    "Мой дядя самых честных правил, когда не в шутку занемог.",
    "It was the best of times, it was the worst of times.",
    "x\ty\n\nz  z",
]
TEXT = st.text(max_size=12) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DOCUMENTS = st.lists(
    st.lists(TEXT | st.sampled_from([*CONTROL_TOKEN_NAMES, "\n\n", "  ", *LINES]), max_size=5).map("".join), max_size=6
)


def make_word_file(vocabulary: str, *, end: str | None = "<|endoftext|>", **changes: Any) -> bytes:
    """Return a tokenizer.json of the single characters in `vocabulary`, which drops all others."""
    names = [*([end] if end else []), *vocabulary]
    model = {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []}
    added = [{**ADDED_TOKEN, "id": 0, "content": end, "special": True}] if end else []
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model,
    }  # fmt: skip
    return json.dumps({**spec, **changes}).encode()


def make_dropping_tokenizer(vocabulary: str) -> Any:
    """Return the tokenizer of `make_word_file`. Skips the test if the library is not installed."""
    pytest.importorskip("tokenizers")
    from preprocess.tokenizers.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer(make_word_file(vocabulary))


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())
