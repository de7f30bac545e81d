"""Examples of duplicates in stats.json: the first pairs, whatever the partitions and the tokenizer are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.build.drop_duplicates import CONTENT_DTYPE, find_duplicates
from preprocess.build.duplicate_pairs import MAX_PAIRS, Pair, add_pairs, find_pairs
from preprocess.report.describe import describe_page
from preprocess.shards.format import Build

WORDS = " ".join(f"word{i}" for i in range(120))
LONG = " ".join(f"{i} is a number" for i in range(300))


def read_examples(build: Build) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((build.folder / "stats.json").read_bytes()).get("duplicate_examples", {})
    return found


@pytest.mark.parametrize("tokenizer", ["byte", "char"])  # the second is trained, so the documents are encoded later
@pytest.mark.parametrize("authors", [True, False])
def test_examples_are_the_first_pairs(build_text: Callable[..., Build], tokenizer: str, authors: bool) -> None:
    near = WORDS.replace("word100", "\x07<b>")
    lines = [WORDS, "alpha", LONG, "alpha", near, "beta \x1b", "alpha", "beta \x1b", LONG + " end", *map(str, range(9))]
    settings: dict[str, Any] = {"document": "line", "clean": (), "split": "exact", "author": "Ann", "year": 2000}
    settings |= {"val_fraction": 0.2}
    build = build_text(
        "\n".join(lines), dedup=True, near_dedup="drop", tokenizer=tokenizer, authors=authors, **settings
    )
    found = read_examples(build)
    assert found["duplicates"] == [
        {
            "kept": {"document": 1, "file": "input.txt", "text": "alpha"},
            "dropped": {"document": 3, "file": "input.txt"},
        },
        {
            "kept": {"document": 5, "file": "input.txt", "text": "beta \\x1b"},
            "dropped": {"document": 7, "file": "input.txt"},
        },
    ]
    first, second = found["near_duplicates"]
    assert (first["kept"]["document"], first["dropped"]["document"]) == (0, 4)
    begin = WORDS.index("word100") - 100
    assert first["kept"]["text"] == f"…{WORDS[begin:]}"
    assert first["dropped"]["text"] == f"…{WORDS[begin:]}".replace("word100", "\\x07<b>")
    assert (second["kept"]["document"], second["dropped"]["document"]) == (2, 8)
    assert second["dropped"]["text"].endswith("number end") and second["kept"]["text"].endswith("number")
    pairs = describe_page(build).duplicates
    assert [pair.reason for pair in pairs] == ["equal", "equal", "nearly equal", "nearly equal"]
    assert pairs[2].other_text == first["dropped"]["text"] and pairs[0].other_text == ""


def test_build_without_duplicates_has_no_examples(build_text: Callable[..., Build]) -> None:
    build = build_text(
        "one\ntwo\nthree\n", document="line", dedup=True, near_dedup="drop", split="exact", val_fraction=0
    )
    assert "duplicate_examples" not in json.loads((build.folder / "stats.json").read_bytes())
    assert not describe_page(build).duplicates


@given(st.lists(st.integers(0, 12), max_size=300), st.integers(1, 300))
def test_pairs_do_not_depend_on_how_the_rows_are_divided(texts: list[int], piece: int) -> None:
    rows = np.zeros(len(texts), CONTENT_DTYPE)
    rows["h"], rows["low"], rows["index"] = np.array(texts) // 4, np.array(texts) % 4, np.arange(len(texts))
    pairs: list[Pair] = []
    first = np.empty(0, CONTENT_DTYPE)
    for start in range(0, len(rows), piece):
        part = np.concatenate([first, rows[start : start + piece]])
        is_duplicate = find_duplicates(part)
        pairs = add_pairs(pairs, find_pairs(part, is_duplicate))
        first = part[~is_duplicate]
    expected: dict[int, Pair] = {}
    for index, text in enumerate(texts):
        if (kept := texts.index(text)) != index:
            expected.setdefault(kept, Pair(index, kept))
    if len(texts) <= 64:  # MAX_CANDIDATES
        assert pairs == list(expected.values())[:MAX_PAIRS]
    assert all(pair == expected[pair.kept] for pair in pairs)
