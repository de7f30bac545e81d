"""Name patterns find metadata in file names, in linear time, and reject all other groups."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.templates import NAME_FIELDS, NamePattern, parse_name_pattern
from tests.conftest import assert_one_line


def test_extract_finds_fields_anywhere_in_a_name() -> None:
    pattern = parse_name_pattern(r"(?P<year>\d{4})-(?P<author>\w+)\.txt")
    assert pattern.fields == ("year", "author") and str(pattern) == r"(?P<year>\d{4})-(?P<author>\w+)\.txt"
    assert pattern.extract(["1865-Carroll.txt", "shelf/0007-x.txt.bak", "readme.md", ""]) == [
        {"year": "1865", "author": "Carroll"},
        {"year": "0007", "author": "x"},
        {},
        {},
    ]
    assert pattern.extract([]) == []


def test_extract_returns_none_for_a_group_without_a_match() -> None:
    assert parse_name_pattern(r"(?P<lang>ru|en)?_(?P<city>[^/]*)/").extract(["_/a", "ru_Omsk/a"]) == [
        {"lang": None, "city": None},
        {"lang": "ru", "city": "Omsk"},
    ]


def test_extract_matches_names_in_any_script() -> None:
    assert parse_name_pattern(r"(?P<author>[\pL ]+)/").extract(["Лев Толстой/Война и мир.txt"]) == [
        {"author": "Лев Толстой"}
    ]
    assert parse_name_pattern(r"(?P<author>\w+)/").extract(["Толстой/1.txt"]) == [{}]  # RE2's \w is ASCII


def test_extract_rejects_a_name_that_is_not_utf8() -> None:
    with pytest.raises(
        FolioError, match=r"the file name 'a\\udcff' is not UTF-8, so name_pattern cannot be matched; rename the file"
    ):
        parse_name_pattern("(?P<year>a)").extract(["b", "a\udcff"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "(",
            "name_pattern '(': missing ): (; expected a regular expression of RE2, which has no look-around and no "
            "back-references",
        ),
        ("(?<=a)(?P<year>b)", "invalid perl operator: (?<=; expected"),
        ("(?=a)(?P<year>b)", "which has no look-around"),
        ("(?P<year>a)(?!b)", "which has no look-around"),
        (r"(?P<year>a)\1", r"invalid escape sequence: \1; expected"),
        ("(?P<year>a)(?P=year)", "no back-references"),
        ("(?P<year>(?>a))", "expected a regular expression of RE2"),
        ("(?P<year>a{9999})", "invalid repetition size: {9999}"),
        ("(?P<year>((((a{99}){99}){99}){99}))", "name_pattern '"),
        (r"\d+", r"no named group; add at least one, such as (?P<year>\d{4})"),
        ("", "no named group"),
        (
            r"(?P<year>\d+)-(\w+)",
            "a group without a name; write (?:…) for a group that captures nothing, or a name as in (?P<year>…)",
        ),
        ("(?P<title>a)", "a group named title; expected one of author, city, year, lang, group"),
        ("(?P<text>a)", "a group named text"),
        ("(?P<year>a)|(?P<year>b)", "two groups named year; use each name once"),
        ("(?P<year>\ud800)", "half of a surrogate pair"),
        ("(?P<year>\x1b[)", r"name_pattern '(?P<year>\x1b[)'"),
        ("(?P<year>a)" + "a" * 990, "name_pattern must have at most 1,000 characters, got 1,001"),
        ("(" * 1_000, "missing )"),
    ],
)
def test_parse_name_pattern_rejects_mistakes(text: str, message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        parse_name_pattern(text)
    assert message in str(caught.value)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    "text", ["(?P<year>(?:a+)+)$", "(?P<year>(?:a|aa)*)$", "(?P<year>(?:a?){500}a{400})$", "(?P<year>(?:.*a){9}.*)c$"]
)
def test_extract_takes_linear_time(text: str) -> None:
    pattern = parse_name_pattern(text)
    started = time.perf_counter()
    pattern.extract(["a" * 4_000 + "!"] * 10)
    assert time.perf_counter() - started < 5


name_parts = st.text(alphabet="ab0-9_ é/", max_size=6)


@given(st.lists(st.tuples(name_parts, name_parts, name_parts), max_size=5))
def test_extract_agrees_with_python(drawn: list[tuple[str, str, str]]) -> None:
    names = ["/".join(name) for name in drawn]
    text = r"(?P<author>[a-b]+)[-_ ](?P<group>[^/]+)/"
    matches = [re.search(text, name) for name in names]
    assert parse_name_pattern(text).extract(names) == [match.groupdict() if match else {} for match in matches]


@given(
    st.text(max_size=20)
    | st.lists(
        st.sampled_from([*NAME_FIELDS, "(?P<", ">", "(", ")", "*", "+", "{2}", "\\", "[", "]", "|", "?", "a"])
    ).map("".join)
)
def test_parse_name_pattern_parses_or_rejects_any_text(text: str) -> None:
    try:
        pattern = parse_name_pattern(text)
    except MisuseError as error:
        assert_one_line(str(error))
    else:
        assert isinstance(pattern, NamePattern) and set(pattern.fields) <= set(NAME_FIELDS)
        assert len(pattern.extract(["a", "b"])) == 2
