"""Long texts are examined in windows: with the verdicts of short ones, and in little memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.filters import long_texts, spans
from preprocess.filters import words as words_module
from preprocess.filters.catalog import load_filter
from preprocess.filters.interface import Verdict
from tests.preprocess.filters.test_rules import SPECS, TEXT, judge

NAMES = list(SPECS)
PATTERNS = st.lists(
    st.sampled_from(["a b c d e f g h i j ", "x y ", "\n", "\n\n", "Line.\n", "z" * 300 + " "]), max_size=40
)


@contextmanager
def use_small_windows(window: int, long_bytes: int = 0) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_module, "GROUP_BYTES", window)
        patch.setattr(long_texts, "LONG_BYTES", long_bytes)
        patch.setattr(long_texts, "WINDOW_ELEMENTS", window)
        patch.setattr(long_texts, "PART_ELEMENTS", 2 * window)
        patch.setattr(spans, "CHUNK_PARTS", window)
        yield


def assert_equal(verdict: Verdict, expected: Verdict) -> None:
    assert verdict.reasons.tolist() == expected.reasons.tolist()
    assert verdict.values is not None and expected.values is not None
    np.testing.assert_array_equal(verdict.values, expected.values)
    assert verdict.measured.keys() == expected.measured.keys()
    for reason, values in verdict.measured.items():
        np.testing.assert_array_equal(values, expected.measured[reason], reason)
    assert verdict.counts == expected.counts
    if expected.batch is not None:
        assert verdict.batch is not None
        is_kept = (expected.reasons < 0).tolist()
        pairs = zip(verdict.batch["text"].to_pylist(), expected.batch["text"].to_pylist(), is_kept, strict=True)
        assert all(new == old for new, old, kept in pairs if kept)


@pytest.mark.parametrize("name", NAMES)
@given(text=st.one_of(TEXT, PATTERNS.map("".join), st.text()), window=st.integers(1, 40))
def test_windows_change_no_verdict_and_no_measured_value(name: str, text: str, window: int) -> None:
    for spec in (SPECS[name], name):
        _, expected = judge(spec, [text])
        with use_small_windows(window):
            assert_equal(judge(spec, [text])[1], expected)


@pytest.mark.parametrize("name", NAMES)
def test_windows_change_no_verdict_of_texts_with_repetitions(name: str) -> None:
    rng = random.Random(3)
    phrases = [" ".join(rng.choices("abcdefghij", k=rng.randint(1, 14))) for _ in range(6)]
    for number in range(15):
        ends = rng.choice([" ", "\n", "\n\n", ". "])
        text = ends.join(rng.choices(phrases, k=rng.randint(1, 30))) + " z" * rng.randint(0, 90)
        _, expected = judge(SPECS[name], [text])
        with use_small_windows(3 + 5 * number):
            assert_equal(judge(SPECS[name], [text])[1], expected)


def test_windows_change_no_word_of_texts_without_spaces() -> None:
    rng = random.Random(5)
    characters = "aé.'’,!!--ะกัก้กขあアがゞー々漢한😀\u0301\u200d_1٣¿…«\r\u2028\u3000·"
    for _ in range(300):
        text = "".join(rng.choice(characters) * rng.choice([1, 1, 1, 2, 3]) for _ in range(rng.randint(1, 60))).encode()
        group = words_module.TextGroup(np.frombuffer(text, np.uint8), np.array([0, len(text)]))
        expected = words_module.find_words(group)
        with use_small_windows(rng.randint(1, 20)):
            found = words_module.find_words(group)
        for name in ("starts", "ends", "lengths", "kinds"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), text.decode())


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\x1c", "\x85", "\u2028"])
def test_a_part_that_is_longer_than_a_window_is_one_line(end: str) -> None:
    for length in range(24):
        text = f"{'a' * length}{end}{'b' * 30}{end}{end}c".encode()
        group = words_module.TextGroup(np.frombuffer(text, np.uint8), np.array([0, len(text)]))
        with use_small_windows(16):
            parts = [part.data.tobytes() for part in long_texts.iter_whole_lines(group, long_texts.ANY_LINE_END)]
        assert b"".join(parts) == text
        assert all(len(part) <= 16 or len(part.decode().splitlines()) == 1 for part in parts), parts


def test_hash_of_a_long_span_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).integers(0, 256, 1000).astype(np.uint8)
    starts, lengths = np.array([0, 3, 100, 500]), np.array([1000, 97, 203, 8])
    expected = spans.hash_spans(data, starts, lengths)
    monkeypatch.setattr(spans, "CHUNK_PARTS", 5)
    np.testing.assert_array_equal(spans.hash_spans(data, starts, lengths), expected)


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *((name, unit) for name in NAMES for unit in ("a\n", "word ", "Some words. ")),
        *((name, "a\r") for name in ("c4", "gopher_quality")),  # a line end of theirs
        *(("c4", unit) for unit in ("a ", "[1]", "{", "é. ")),
        *(("fineweb_quality", unit) for unit in ("a\u2028", "กข", "!?")),  # without spaces and line feeds
    ],
)
def test_a_long_text_takes_a_small_multiple_of_its_bytes(name: str, unit: str) -> None:
    text = unit * (800_000 // len(unit))
    judging = load_filter(name)
    batch = make_batch({"text": [text], "source": 0, "position": 0}, 1)
    with use_small_windows(1 << 13, long_bytes=1 << 18):
        tracemalloc.start()
        try:
            judging.judge(batch, batch.column("text"))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    limit = {"gopher_repetition": 13, "c4": 8}.get(name, 4)
    num_bytes = len(text.encode())
    assert peak < limit * num_bytes, f"{peak / num_bytes:.1f} bytes for a byte of text"
