"""Cleaning: each rule does its own, counts it, and all together are idempotent."""

from __future__ import annotations

import sys
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.errors import MisuseError
from preprocess.recipes.schema import CLEANING_RULES, DEFAULT_RULES
from preprocess.stages.clean import _rows_that_may_compose, clean
from preprocess.stages.filters import within_bounds

NASTY = st.text(
    st.sampled_from("ab\r\n\t\x00\x0b\x1b\x7f\x85\x9f\ufeff é\u0301e\u0327한ᄀ가")
    | st.characters(exclude_categories=["Cs"]),
    max_size=30,
)


def run(texts: list[str], rules: tuple[str, ...] = DEFAULT_RULES) -> tuple[list[str], dict[str, int]]:
    batch, counts = clean(make_batch({"text": pa.array(texts, pa.large_string())}, len(texts)), rules)
    return batch.column("text").to_pylist(), counts


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("line_ends", "a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        ("control_characters", "a\x00b\x1b[31mc\td\n\x7f\x9be", "ab[31mc\td\ne"),
        ("byte_order_mark", "\ufeff\ufeffa\ufeffb", "a\ufeffb"),
        ("nfc", "e\u0301\u1100\u1161", "é가"),
        (
            "html_entities",
            "&lt;b&gt; &amp;amp; &#1103; &nbsp;&#x1F600; AT&T &unknown;",
            "<b> &amp; я \u00a0😀 AT&T &unknown;",
        ),
        ("white_space", "a  b\t\tc \n\n\n\nd  ", "a b c\n\nd "),
        ("trim", " \n a b\u3000\n", "a b"),
    ],
)
def test_a_rule_changes_what_it_says_and_counts_it(rule: str, before: str, after: str) -> None:
    assert run([before, "clean"], (rule,)) == ([after, "clean"], {rule: 1})
    others = tuple(r for r in DEFAULT_RULES if r != rule)
    assert run([before], others)[0][0] != after


def test_carriage_returns_are_line_ends_business() -> None:
    assert run(["a\rb\x0cc"], ("control_characters",))[0] == ["a\rbc"]


def test_nothing_is_trimmed() -> None:
    texts = ["  a  ", "\n\n\t", "", " \u00a0x\u3000"]
    assert run(texts) == (texts, dict.fromkeys(DEFAULT_RULES, 0))


@given(st.lists(NASTY, max_size=5))
def test_cleaning_is_idempotent_and_leaves_what_it_promises(texts: list[str]) -> None:
    once, _ = run(texts)
    assert run(once) == (once, dict.fromkeys(DEFAULT_RULES, 0))
    for text in once:
        assert unicodedata.is_normalized("NFC", text) and not text.startswith("\ufeff")
        assert not [c for c in text if unicodedata.category(c) == "Cc" and c not in "\t\n"]


@settings(max_examples=500)
@example([" \ufeffa", "\ufeff a", "\u3000\ufeff\u3000", " \u0301", "a \n \n \n b"])
@given(st.lists(NASTY, max_size=5))
def test_all_rules_but_the_guessing_ones_are_idempotent_together(texts: list[str]) -> None:
    rules = tuple(rule for rule in CLEANING_RULES if rule not in ("mojibake", "html_entities"))
    once, _ = run(texts, rules)
    assert run(once, rules) == (once, dict.fromkeys(rules, 0))
    assert all(text == text.strip() or text.strip() == "" for text in once)


@given(st.lists(NASTY, min_size=2, max_size=5))
def test_a_document_is_cleaned_alike_in_any_batch(texts: list[str]) -> None:
    assert run(texts)[0] == [run([text])[0][0] for text in texts]


def test_an_empty_batch_is_cleaned() -> None:
    assert run([]) == ([], dict.fromkeys(DEFAULT_RULES, 0))


def test_mojibake_is_mended_where_it_is_and_nowhere_else() -> None:
    broken, fine = "ÐŸÑ€Ð¸Ð²ÐµÑ‚, Ð¼Ð¸Ñ€ â€” cafÃ©", "naïve café – “quoted” … &amp; ½"
    assert run([broken, fine, "plain"], ("mojibake",)) == (["Привет, мир — café", fine, "plain"], {"mojibake": 1})


def test_mojibake_without_ftfy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(MisuseError, match="pip install 'folio-lm.mojibake.'"):
        run(["é"], ("mojibake",))
    assert run(["e"], ("mojibake",)) == (["e"], {"mojibake": 0})


def test_no_character_that_nfc_may_touch_is_overlooked() -> None:
    """All of Unicode: what the scan by bytes passes over never changes, never moves and never combines with what precedes it."""
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    # What ends a composed character can combine with what stands in front of it.
    followers = {unicodedata.normalize("NFD", c)[-1] for c in characters if len(unicodedata.normalize("NFD", c)) > 1}
    looked_at = set(_rows_that_may_compose(pa.array(characters, pa.large_string())).tolist())
    assert 20_000 < len(characters) - len(looked_at) < 100_000
    for row, character in enumerate(characters):
        if row not in looked_at:
            assert unicodedata.is_normalized("NFC", character) and not unicodedata.combining(character)
            assert character not in followers


def test_bounds_of_length() -> None:
    texts = pa.array(["", "яя", "яяя", "abcd"], pa.large_string())
    keep, counts = within_bounds(texts, 2, 3)
    assert keep.tolist() == [False, True, True, False] and counts == {"too_short": 1, "too_long": 1}
    assert within_bounds(texts, None, None)[1] == {} and within_bounds(texts, None, None)[0].all()
