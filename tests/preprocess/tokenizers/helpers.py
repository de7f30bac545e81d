"""What several tests of tokenizers share."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import strategies as st

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


def arrow(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())
