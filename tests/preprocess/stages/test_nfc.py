"""Normalization to NFC, also of long runs of combining marks."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.stages.nfc import FIRST_MARK, LAST_MARK, normalize_nfc

# Marks of seven classes, marks that are decomposed into marks, and characters that they combine with.
MARKS = (
    "\u0300\u0301\u0302\u0308\u0313\u0323\u0327\u0345\u0f71\u0f73\u0f74\u0f81\u0340\u0344\u05b0\u094d\u3099\U0001d165"
)
CHARACTERS = "aeoé\u1ebfάば한각\u0b47\u0b56\u0bd7\u0f40\U0001d15e \n"


@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from(MARKS * 3 + CHARACTERS), max_size=60))
def test_long_runs_of_marks_are_normalized_as_by_unicodedata(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("preprocess.stages.nfc.LONG_RUN", 3)
    normalized = normalize_nfc(text)
    assert normalized == unicodedata.normalize("NFC", text) and normalize_nfc(normalized) == normalized


def test_every_mark_is_between_the_first_and_the_last() -> None:
    marks = [c for c in range(0x110000) if unicodedata.combining(chr(c))]
    assert min(marks) >= FIRST_MARK and max(marks) <= LAST_MARK


@pytest.mark.parametrize("run", ["\u0301\u0327", "\u0344\u0323", "\u0f73\u0f71"])
def test_a_million_marks_take_less_than_a_second(run: str) -> None:
    text = "words before a" + run * 500_000 + " and behind e\u0301"
    begin = time.process_time()
    normalized = normalize_nfc(text)
    assert time.process_time() - begin < 1
    assert unicodedata.is_normalized("NFC", normalized) and normalized.endswith(" and behind é")
