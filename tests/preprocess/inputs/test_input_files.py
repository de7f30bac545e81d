"""Patterns over file names: RE2's, so that none of them can run away, and each group a field."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.templates import NAME_FIELDS, NamePattern, parse_name_pattern
from tests.conftest import assert_one_line


def test_fields_are_found_anywhere_in_the_name() -> None:
    pattern = parse_name_pattern(r"(?P<year>\d{4})-(?P<author>\w+)\.txt")
    assert pattern.fields == ("year", "author") and str(pattern) == r"(?P<year>\d{4})-(?P<author>\w+)\.txt"
    assert pattern.extract(["1865-Carroll.txt", "shelf/0007-x.txt.bak", "readme.md", ""]) == [
        {"year": "1865", "author": "Carroll"},
        {"year": "0007", "author": "x"},
        {},
        {},
    ]
    assert pattern.extract([]) == []


def test_a_group_that_matched_nothing_is_none() -> None:
    assert parse_name_pattern(r"(?P<lang>ru|en)?_(?P<city>[^/]*)/").extract(["_/a", "ru_Omsk/a"]) == [
        {"lang": None, "city": None},
        {"lang": "ru", "city": "Omsk"},
    ]


def test_names_in_any_script() -> None:
    assert parse_name_pattern(r"(?P<author>[\pL ]+)/").extract(["Лев Толстой/Война и мир.txt"]) == [
        {"author": "Лев Толстой"}
    ]
    assert parse_name_pattern(r"(?P<author>\w+)/").extract(["Толстой/1.txt"]) == [{}]  # RE2's \w is ASCII


def test_a_name_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(
        FolioError, match=r"the file name 'a\\udcff' is not UTF-8, and a pattern is to read it; rename the file"
    ):
        parse_name_pattern("(?P<year>a)").extract(["b", "a\udcff"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "(",
            "name pattern '(': missing ): (; wanted a regular expression of RE2, which has no look-around and no back-references",
        ),
        ("(?<=a)(?P<year>b)", "invalid perl operator: (?<=; wanted"),
        ("(?=a)(?P<year>b)", "which has no look-around"),
        ("(?P<year>a)(?!b)", "which has no look-around"),
        (r"(?P<year>a)\1", r"invalid escape sequence: \1; wanted"),
        ("(?P<year>a)(?P=year)", "no back-references"),
        ("(?P<year>(?>a))", "wanted a regular expression of RE2"),
        ("(?P<year>a{9999})", "invalid repetition size: {9999}"),
        ("(?P<year>((((a{99}){99}){99}){99}))", "name pattern"),
        (r"\d+", r"no named group; wanted one at least, such as (?P<year>\d{4})"),
        ("", "no named group"),
        (r"(?P<year>\d+)-(\w+)", "a group without a name; wanted (?:…) where a group only groups"),
        ("(?P<title>a)", "a group named title; wanted author, city, year, lang, group"),
        ("(?P<text>a)", "a group named text"),
        ("(?P<year>a)|(?P<year>b)", "two groups named year; wanted each field once"),
        ("(?P<year>\ud800)", "half of a surrogate pair"),
        ("(?P<year>\x1b[)", r"name pattern '(?P<year>\x1b[)'"),
        ("(?P<year>a)" + "a" * 990, "a name pattern of 1,001 characters; wanted at most 1,000"),
        ("(" * 1_000, "missing )"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        parse_name_pattern(text)
    assert message in str(caught.value)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    "text", ["(?P<year>(?:a+)+)$", "(?P<year>(?:a|aa)*)$", "(?P<year>(?:a?){500}a{400})$", "(?P<year>(?:.*a){9}.*)c$"]
)
def test_no_pattern_runs_away(text: str) -> None:
    pattern = parse_name_pattern(text)
    started = time.perf_counter()
    pattern.extract(["a" * 4_000 + "!"] * 10)
    assert time.perf_counter() - started < 5


parts = st.text(alphabet="ab0-9_ é/", max_size=6)


@given(st.lists(st.tuples(parts, parts, parts), max_size=5))
def test_the_same_fields_as_python_finds(drawn: list[tuple[str, str, str]]) -> None:
    names = ["/".join(name) for name in drawn]
    text = r"(?P<author>[a-b]+)[-_ ](?P<group>[^/]+)/"
    found = [re.search(text, name) for name in names]
    assert parse_name_pattern(text).extract(names) == [match.groupdict() if match else {} for match in found]


@given(
    st.text(max_size=20)
    | st.lists(
        st.sampled_from([*NAME_FIELDS, "(?P<", ">", "(", ")", "*", "+", "{2}", "\\", "[", "]", "|", "?", "a"])
    ).map("".join)
)
def test_no_text_does_worse_than_a_message(text: str) -> None:
    try:
        pattern = parse_name_pattern(text)
    except MisuseError as error:
        assert_one_line(str(error))
    else:
        assert isinstance(pattern, NamePattern) and set(pattern.fields) <= set(NAME_FIELDS)
        assert len(pattern.extract(["a", "b"])) == 2
