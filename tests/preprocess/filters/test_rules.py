"""The quality rules, compared with a plain Python reference, document by document."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.documents import make_batch
from preprocess.filters import words as words_module
from preprocess.filters.bad_words import BadWordsFilter
from preprocess.filters.catalog import CLASSES, load_filter
from preprocess.filters.interface import Verdict
from preprocess.recipes.filter_settings import FILTERS, PRESETS, BadWords, format_filter, parse_filter
from tests.preprocess.filters import reference

Reference = Callable[[str, Any], str | None]
REFERENCES: dict[str, Reference] = {
    "gopher_quality": reference.judge_gopher_quality,
    "gopher_repetition": reference.judge_gopher_repetition,
    "fineweb_quality": reference.judge_fineweb_quality,
    "c4": lambda text, settings: reference.judge_c4(text, settings)[0],
}
# Limits that short texts reach, so that all rules decide about some of them.
SPECS = {
    "gopher_quality": "gopher_quality:min_words=4,max_words=14,min_mean_word_length=2,max_mean_word_length=6,"
    "max_bullet_lines=0.5,min_stop_words=1,min_alphabetic_words=0.6",
    "gopher_repetition": "gopher_repetition:max_top_2_gram=0.5,max_top_3_gram=0.6,max_top_4_gram=0.7",
    "fineweb_quality": "fineweb_quality:short_line_characters=6,max_line_feeds_per_word=0.4",
    "c4": "c4:min_sentences=2,min_line_words=2,max_word_characters=12",
}
PARTS = [
    "The cat sat. ", "It is good to have one! ", "a b c d e ", "\n", "\n\n", "\n\n\n", " ", "- item\n", "• other",
    "...", "…", "#", "# ", "日本語。", "ก\u0e33", "\r\n", "\u2028", "\x85", "x" * 13, "[1]", "[edit]", "[١]", "[",
    "one two, three. ",
    "lorem Ipsum", "use cookies ", "JavaScript ", "{", "“quoted”", '"', "é", "\u0301", "3.5 ", "the and of ", "end.\n",
    "words words words ", "Same line here.\n", "Mr. X? No.", "!?", "😀", "terms of use", "１ ", "\x1c",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PARTS), max_size=25).map("".join)
TEXTS = st.lists(TEXT, min_size=1, max_size=6)


def judge(spec: str, texts: list[str]) -> tuple[list[str | None], Verdict]:
    judging = load_filter(spec)
    batch = make_batch({"text": texts, "source": 0, "position": list(range(len(texts)))}, len(texts))
    verdict = judging.judge(batch, batch.column("text"))
    return [None if r < 0 else judging.reasons[r] for r in verdict.reasons.tolist()], verdict


@pytest.mark.parametrize("name", SPECS)
@given(texts=TEXTS)
def test_verdicts_equal_the_reference(name: str, texts: list[str]) -> None:
    _, settings = parse_filter(SPECS[name])
    assert judge(SPECS[name], texts)[0] == [REFERENCES[name](text, settings) for text in texts]


@pytest.mark.parametrize("name", SPECS)
def test_every_rule_decides_about_a_random_document(name: str) -> None:
    rng = random.Random(5)
    texts = ["".join(rng.choices(PARTS, k=rng.randint(0, 30))) for _ in range(1500)]
    texts += ["\n\n".join(rng.choices(["A.", "B.", "C and more.", "A long one."], k=n)) for n in range(2, 12)]
    texts += ["\n\n".join(["Much longer than others."] * 2 + ["abcdefgh"[i] for i in range(8)])]
    texts += [f"{' '.join(rng.choices('abcdefgh', k=n))} " * 2 + "some other words here" * m for n in range(5, 25)
              for m in (0, 1, 2)]  # fmt: skip
    reasons, _ = judge(SPECS[name], texts)
    _, settings = parse_filter(SPECS[name])
    assert reasons == [REFERENCES[name](text, settings) for text in texts]
    # A text with a repeated sequence of ten words has a repeated one of five.
    hidden = {f"duplicate_{n}_grams" for n in range(6, 11)}
    assert {*load_filter(SPECS[name]).reasons} - hidden <= {*reasons} - {None}


@pytest.mark.parametrize("size", range(5, 11))
def test_each_size_of_repeated_sequences_has_its_limit(size: int) -> None:
    off = {field.name: None for field in dataclasses.fields(FILTERS["gopher_repetition"])}
    settings = FILTERS["gopher_repetition"](**off | {f"max_duplicate_{size}_grams": 0.2})
    rng = random.Random(size)
    phrases = [" ".join(rng.choices("abc", k=rng.randint(1, 20))) for _ in range(4)]
    texts = [" ".join(rng.choices(phrases, k=rng.randint(1, 8))) + "z" * rng.randint(0, 40) for _ in range(150)]
    everything_else_off = dataclasses.replace(
        settings, **{name: 9 for name, value in off.items() if getattr(settings, name) is None}
    )
    reasons, _ = judge(format_filter("gopher_repetition", settings), texts)
    assert reasons == [reference.judge_gopher_repetition(text, everything_else_off) for text in texts]
    assert {None, f"duplicate_{size}_grams"} <= {*reasons}


@given(texts=TEXTS)
def test_c4_removes_the_lines_that_the_reference_removes(texts: list[str]) -> None:
    _, settings = parse_filter(SPECS["c4"])
    reasons, verdict = judge(SPECS["c4"], texts)
    assert verdict.batch is not None
    expected = [reference.judge_c4(text, settings) for text in texts]
    new_texts = verdict.batch.column("text").to_pylist()
    kept = [(new, text) for new, (reason, text) in zip(new_texts, expected, strict=True) if reason is None]
    assert [new for new, _ in kept] == [text for _, text in kept]
    assert reasons == [reason for reason, _ in expected]


def test_c4_counts_the_lines_it_removes_from_documents_that_are_kept() -> None:
    prose = "One is here. Two are here. Three are here. Four are here. Five are here."
    lines = [prose, "no end", "two words.", "Turn on JavaScript now.", "Read our terms of use.", "x" * 1001 + " a b."]
    text = "\n".join(lines)
    reasons, verdict = judge("c4", [text, "nothing\nto keep"])
    assert reasons == [None, "too_few_sentences"] and verdict.batch is not None
    assert verdict.batch.column("text")[0].as_py() == prose
    names = ("lines_with_long_words", "lines_without_punctuation", "short_lines", "javascript", "policy")
    assert verdict.counts == dict.fromkeys(names, 1)


@pytest.mark.parametrize("name", SPECS)
@given(texts=TEXTS)
def test_a_verdict_does_not_depend_on_the_other_documents(name: str, texts: list[str]) -> None:
    reasons, verdict = judge(SPECS[name], texts)
    assert verdict.values is not None
    for i, text in enumerate(texts):
        [reason], alone = judge(SPECS[name], [text])
        assert reason == reasons[i] and alone.values is not None
        np.testing.assert_array_equal(alone.values, verdict.values[i : i + 1])
        if verdict.batch is not None and alone.batch is not None and reason is None:
            assert alone.batch.column("text")[0] == verdict.batch.column("text")[i]


@pytest.mark.parametrize("name", SPECS)
@given(texts=TEXTS)
def test_a_verdict_does_not_depend_on_the_size_of_groups(name: str, texts: list[str]) -> None:
    expected, _ = judge(SPECS[name], texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_module, "GROUP_BYTES", 16)
        assert judge(SPECS[name], texts)[0] == expected


@pytest.mark.parametrize("name", [*SPECS, "word_count"])
def test_a_sliced_batch_and_one_without_documents_are_judged(name: str) -> None:
    texts = ["The cat sat on the mat.", "a b", "it has been good to be with you all here today."]
    judging = load_filter(name)
    batch = make_batch({"text": texts, "source": 0, "position": [0, 1, 2]}, 3)
    whole = judging.judge(batch, batch.column("text"))
    part = batch.slice(1, 2)
    assert judging.judge(part, part.column("text")).reasons.tolist() == whole.reasons.tolist()[1:]
    nothing = batch.slice(0, 0)
    assert len(judging.judge(nothing, nothing.column("text")).reasons) == 0


def test_every_filter_has_settings_and_a_class() -> None:
    assert FILTERS.keys() == CLASSES.keys()
    for specs in PRESETS.values():
        for spec in specs:
            assert format_filter(*parse_filter(spec)) == format_filter(
                *parse_filter(format_filter(*parse_filter(spec)))
            )


def test_measured_values_are_those_of_the_rules() -> None:
    text = "The cat sat on the mat. " * 20
    _, verdict = judge("gopher_quality", [text])
    assert verdict.measured["words_too_short"].tolist() == [17 / 6]
    assert verdict.measured["too_few_stop_words"].tolist() == [1.0]
    _, verdict = judge("gopher_repetition", [text])
    assert verdict.values is not None and verdict.values.tolist() == [len("The cat") * 20 / len(text)]


def test_words_at_the_boundary_of_two_documents_are_separate() -> None:
    reasons, verdict = judge("gopher_quality:min_words=2", ["a..", ".b", "java", "script"])
    assert verdict.values is not None and reasons == ["too_few_words"] * 4 and verdict.values.tolist() == [1.0] * 4
    texts = ["First is java", "script, second. It is."]
    assert judge("c4:terminal_punctuation=false,min_sentences=1", texts)[0] == [None, None]


def test_a_long_line_without_spaces_is_judged_in_bounded_time() -> None:
    text = "x" * 2_000_000 + "." * 1_000_000 + "中" * 3_000
    assert judge("gopher_quality", [text])[0] == ["words_too_long"]
    assert judge("gopher_repetition", [text])[0] == [None]
    assert judge("c4", [text])[0] == ["too_few_sentences"]
    assert judge("fineweb_quality", ["[" + text + "]"])[0] == ["too_few_lines_end_with_punctuation"]


def test_a_long_list_of_chinese_words_is_read_in_linear_time(tmp_path: Path) -> None:
    characters = [chr(0x4E00 + i) for i in range(200)]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(a + b for a in characters for b in characters), encoding="utf-8")
    begin = time.process_time()
    BadWordsFilter(BadWords(file=str(path)))
    assert time.process_time() - begin < 10  # 40 s with a set of all words for each word
