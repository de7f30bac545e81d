"""Templates join columns by names in braces and never interpret the values of a column."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.recipes.templates import Template, parse_template
from tests.conftest import assert_one_line


def join(text: str, **columns: Any) -> list[str | None]:
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    texts = parse_template(text).join(arrays)
    assert isinstance(texts, pa.LargeStringArray)
    return texts.to_pylist()


def test_join_fills_columns_into_the_text() -> None:
    template = "Q: {query}\n\nReasoning:\n{reasoning}\n\nA: {answer}"
    assert parse_template(template).columns == ("query", "reasoning", "answer")
    texts = join(template, query=["1+1?", "?"], reasoning=["one more", "so"], answer=[2, None], unused=[[1], [2]])
    assert texts == ["Q: 1+1?\n\nReasoning:\none more\n\nA: 2", None]


def test_join_does_not_interpret_braces_in_a_column() -> None:
    values = ["{b}", "{{", "}", "{a.__class__}", "%s", "\\1", "$a"]
    assert join("{{{a}}}{a}", a=values, b=["secret"] * 7) == [f"{{{v}}}{v}" for v in values]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array(["a", None, ""], pa.string()), ["<a>", None, "<>"]),
        (pa.array(["a", None], pa.string_view()), ["<a>", None]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["<a>", None, "<a>"]),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None])), ["<a>", None, None]),
        (pa.array([1, -(2**63), None]), ["<1>", "<-9223372036854775808>", None]),
        (pa.array([2**64 - 1], pa.uint64()), ["<18446744073709551615>"]),
        (pa.array([0.1, 2.5, None]), ["<0.1>", "<2.5>", None]),
        (pa.array([0.1], pa.float32()), ["<0.1>"]),
        (pa.array([1.0, math.nan, 1e300]), ["<1>", "<nan>", "<1e+300>"]),
        (pa.array([True, False, None]), ["<true>", "<false>", None]),
        (pa.nulls(2), [None, None]),
        (pa.array([], pa.string()), []),
        (pa.array(["a", "b", "c"])[1:], ["<b>", "<c>"]),
    ],
)
def test_join_converts_values_to_text(values: pa.Array, texts: list[str | None]) -> None:
    assert join("<{x}>", x=values) == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a{x.0}",
            "template: '{x.0}' at character 2 (not a plain field); expected {name} with the name of a column, such as "
            "{title} or {meta.title}, or {{ and }} for braces",
        ),
        ("a{{b}}{c}{x[0]}", "'{x[0]}' at character 10"),
        ("{x[0]}", "'{x[0]}' at character 1"),
        ("{x!r}", "'{x!r}' at character 1"),
        ("{x!}", "'{x!}' at character 1"),
        ("{x:>9}", "'{x:>9}' at character 1"),
        ("{x:}", "'{x:}' at character 1"),
        ("{x:{y}}", "'{x:{y}' at character 1"),
        ("{}", "'{}' at character 1"),
        ("{0}", "'{0}' at character 1"),
        ("{ x }", "'{ x }' at character 1"),
        ("{имя}", "'{имя}' at character 1"),
        ("{x\n}", r"'{x\n}' at character 1"),
        ("{x\x1b}", r"'{x\x1b}' at character 1"),
        ("{a {b}", "'{a {b}' at character 1"),
        ("{a", "'{a' at character 1 (expected '}' before end of string)"),
        ("{" + "a" * 9_999, "…' at character 1 (expected '}' before end of string)"),
        ("{a}}", "'}' at character 4 (Single '}' encountered"),
        ("a } b", "'a }' at character 1 (Single '}' encountered"),
        ("{{a}}", "template '{{a}}' contains no column; add at least one, such as {text}"),
        ("", "template '' contains no column"),
        ("{a}\ud800", "half of a surrogate pair"),
    ],
)
def test_parse_template_rejects_anything_but_plain_names(text: str, message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        parse_template(text)
    assert message in str(caught.value)
    assert_one_line(str(caught.value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"b": ["x"]}, "template: no column is called a; the table has b"),
        ({}, "the table has no columns"),
        ({"a": [["x"]]}, "template: column a is of type list<"),
        (
            {"a": [b"\xff"]},
            "template: column a is of type binary; only text, numbers, booleans and dates can be joined",
        ),
    ],
)
def test_join_rejects_missing_columns_and_other_types(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        join("{a}", **values)
    assert message in str(caught.value)
    assert_one_line(str(caught.value))


whole_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]) | st.sampled_from("{}"), max_size=8)
parts = st.lists(whole_text | st.sampled_from([("a",), ("b",), ("_c9",)]), max_size=6)


@given(parts, st.lists(st.tuples(*[st.none() | whole_text] * 3), max_size=4))
def test_join_agrees_with_str_format(drawn: list[str | tuple[str]], table: list[tuple[str | None, ...]]) -> None:
    text = (
        "".join(f"{{{p[0]}}}" if isinstance(p, tuple) else p.replace("{", "{{").replace("}", "}}") for p in drawn)
        + "{a}"
    )
    template = parse_template(text)
    assert str(template) == text and parse_template(str(template)) == template
    rows = [dict(zip(("a", "b", "_c9"), row, strict=True)) for row in table]
    arrays = {name: pa.array([row[name] for row in rows], pa.string()) for name in ("a", "b", "_c9")}
    expected = [None if any(row[c] is None for c in template.columns) else text.format(**row) for row in rows]
    assert template.join(arrays).to_pylist() == expected


@given(st.text(max_size=40) | st.text(alphabet="{}ab.[0!:_ \n\ud800", max_size=20))
def test_parse_template_parses_or_rejects_any_text(text: str) -> None:
    try:
        template = parse_template(text)
    except MisuseError as error:
        assert_one_line(str(error))
    else:
        assert isinstance(template, Template) and str(template) == text
