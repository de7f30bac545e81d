"""The cleaning rules, one by one and all together."""

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
from preprocess.stages.clean import _find_nfc_candidates, clean
from tests.helpers.memory import measure_peak_bytes

MESSY_TEXTS = st.text(
    st.sampled_from("ab\r\n\t\x00\x0b\x1b\x7f\x85\x9f\ufeff é\u0301e\u0327한ᄀ가")
    | st.characters(exclude_categories=["Cs"]),
    max_size=30,
)


def clean_texts(texts: list[str], rules: tuple[str, ...] = DEFAULT_RULES) -> tuple[list[str], dict[str, int]]:
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
def test_each_rule_changes_and_counts_its_text(rule: str, before: str, after: str) -> None:
    assert clean_texts([before, "clean"], (rule,)) == ([after, "clean"], {rule: 1})
    others = tuple(r for r in DEFAULT_RULES if r != rule)
    assert clean_texts([before], others)[0][0] != after


def test_control_characters_rule_keeps_carriage_returns() -> None:
    assert clean_texts(["a\rb\x0cc"], ("control_characters",))[0] == ["a\rbc"]


def test_default_rules_do_not_trim() -> None:
    texts = ["  a  ", "\n\n\t", "", " \u00a0x\u3000"]
    assert clean_texts(texts) == (texts, dict.fromkeys(DEFAULT_RULES, 0))


@given(st.lists(MESSY_TEXTS, max_size=5))
def test_default_rules_are_idempotent_and_remove_control_characters(texts: list[str]) -> None:
    once, _ = clean_texts(texts)
    assert clean_texts(once) == (once, dict.fromkeys(DEFAULT_RULES, 0))
    for text in once:
        assert unicodedata.is_normalized("NFC", text) and not text.startswith("\ufeff")
        assert not [c for c in text if unicodedata.category(c) == "Cc" and c not in "\t\n"]


@settings(max_examples=500)
@example([" \ufeffa", "\ufeff a", "\u3000\ufeff\u3000", " \u0301", "a \n \n \n b"])
@given(st.lists(MESSY_TEXTS, max_size=5))
def test_all_rules_except_mojibake_and_html_entities_are_idempotent(texts: list[str]) -> None:
    rules = tuple(rule for rule in CLEANING_RULES if rule not in ("mojibake", "html_entities"))
    once, _ = clean_texts(texts, rules)
    assert clean_texts(once, rules) == (once, dict.fromkeys(rules, 0))
    assert all(text == text.strip() or text.strip() == "" for text in once)


@given(st.lists(MESSY_TEXTS, min_size=2, max_size=5))
def test_cleaning_a_document_does_not_depend_on_its_batch(texts: list[str]) -> None:
    assert clean_texts(texts)[0] == [clean_texts([text])[0][0] for text in texts]


def test_clean_accepts_an_empty_batch() -> None:
    assert clean_texts([]) == ([], dict.fromkeys(DEFAULT_RULES, 0))


def test_mojibake_rule_changes_only_broken_texts() -> None:
    broken, fine = "ÐŸÑ€Ð¸Ð²ÐµÑ‚, Ð¼Ð¸Ñ€ â€” cafÃ©", "naïve café – “quoted” … &amp; ½"
    assert clean_texts([broken, fine, "plain"], ("mojibake",)) == (
        ["Привет, мир — café", fine, "plain"],
        {"mojibake": 1},
    )


def test_mojibake_rule_without_ftfy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(MisuseError, match="pip install 'folio-lm.mojibake.'"):
        clean_texts(["é"], ("mojibake",))
    assert clean_texts(["e"], ("mojibake",)) == (["e"], {"mojibake": 0})


def test_nfc_scan_skips_no_character_that_nfc_may_change() -> None:
    """Check all of Unicode.

    A character that the byte scan skips must be unchanged by NFC, must not be reordered, and must
    not combine with the character before it.
    """
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    # The last character of a decomposition can combine with a character before it.
    followers = {unicodedata.normalize("NFD", c)[-1] for c in characters if len(unicodedata.normalize("NFD", c)) > 1}
    candidates = set(_find_nfc_candidates(pa.array(characters, pa.large_string())).tolist())
    assert 20_000 < len(characters) - len(candidates) < 100_000
    for row, character in enumerate(characters):
        if row not in candidates:
            assert unicodedata.is_normalized("NFC", character) and not unicodedata.combining(character)
            assert character not in followers


@pytest.mark.parametrize(
    ("number", "character"), [("0" * 5_000 + "65", "A"), ("1" * 5_000, "\ufffd"), ("0" * 5_000, "\ufffd")]
)
def test_html_entities_rule_reads_numbers_of_any_length(number: str, character: str) -> None:
    assert clean_texts([f"a&#{number};b&#{number}"], ("html_entities",))[0] == [f"a{character}b{character}"]


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(["&amp", ";", "&", "#", "&#65", "&lt;", " ", "a", "é", "e\u0301", "\u1100\u1161", "\u0301"])
    ),
    st.sampled_from(["html_entities", "nfc"]),
    st.integers(1, 9),
)
def test_parts_of_a_long_text_are_rewritten_like_the_whole_text(pieces: list[str], rule: str, part_bytes: int) -> None:
    text = "".join(pieces)
    expected = clean_texts([text], (rule,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.stages.clean.PART_BYTES", part_bytes)
        assert clean_texts([text], (rule,)) == expected


@pytest.mark.parametrize(
    ("rule", "word", "num_words"), [("html_entities", "&a", 50_000), ("nfc", "e\u0301", 2_000_000)]
)
def test_rewriting_a_text_without_spaces_needs_a_few_times_its_size(
    monkeypatch: pytest.MonkeyPatch, rule: str, word: str, num_words: int
) -> None:
    monkeypatch.setattr("preprocess.stages.clean.PART_BYTES", 1 << 14)
    text = word * num_words
    batch = make_batch({"text": pa.array([text], pa.large_string())}, 1)
    clean(batch, (rule,))  # tables of Unicode are made once
    assert measure_peak_bytes(lambda: clean(batch, (rule,))) < 8 * len(text.encode())


def test_mojibake_in_parts_of_a_long_text_is_repaired_as_in_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ftfy = pytest.importorskip("ftfy")
    monkeypatch.setattr("preprocess.stages.clean.MOJIBAKE_PART_BYTES", 64)
    for unit in ("sÃ³ voilÃ  le travail\n", "sÃ³, voilÃ  le travail ", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "sÃ³\r\n", "fine, é\n"):
        text = unit * 20
        assert clean_texts([text], ("mojibake",))[0] == [ftfy.fix_encoding(text)]


def test_mojibake_of_a_long_text_needs_memory_for_its_parts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Python string, each character of these texts takes four bytes."""
    pytest.importorskip("ftfy")
    monkeypatch.setattr("preprocess.stages.clean.MOJIBAKE_PART_BYTES", 1 << 14)
    for unit in ("plain words ", "plain words\n"):
        text = "\U0001f600" + unit * 40_000
        batch = make_batch({"text": pa.array([text], pa.large_string())}, 1)
        assert measure_peak_bytes(lambda batch=batch: clean(batch, ("mojibake",))) < 3 * len(text)
