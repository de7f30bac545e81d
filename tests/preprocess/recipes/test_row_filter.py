"""Conditions are parsed, formatted, rejected with one line, and select the same rows as a Python loop."""

from __future__ import annotations

import math
import operator
import time
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import MisuseError
from preprocess.recipes.row_filter import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    Comparison,
    Condition,
    Junction,
    Negation,
    Node,
    parse_condition,
)
from tests.conftest import assert_one_line


def select_rows(text: str, **columns: Any) -> list[bool]:
    arrays = {name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in columns.items()}
    selected = parse_condition(text).apply(arrays)
    assert isinstance(selected, pa.BooleanArray) and selected.null_count == 0
    return selected.to_pylist()


@pytest.mark.parametrize(
    ("text", "canonical_text", "columns"),
    [
        ('language == "en"', 'language == "en"', ("language",)),
        (
            "score >= 0.5 and not (lang in ['ru', \"en\"])",
            'score >= 0.5 and not lang in ["ru", "en"]',
            ("score", "lang"),
        ),
        ("text_length > 100", "text_length > 100", ("text_length",)),
        ("title != null", "title != null", ("title",)),
        ("a not in [1]", "a not in [1]", ("a",)),
        ("100 < n and 1e3 >= n", "n > 100 and n <= 1000.0", ("n",)),
        ("`my column` == true", "`my column` == true", ("my column",)),
        ("`and` == false or `plain` == 1", "`and` == false or plain == 1", ("and", "plain")),
        ("(b == 1 and (a == 2)) and b == 3", "b == 1 and a == 2 and b == 3", ("b", "a")),
        ("a == 1 or b == 2 and c == 3", "a == 1 or b == 2 and c == 3", ("a", "b", "c")),
        ("(a == 1 or b == 2) and c == 3", "(a == 1 or b == 2) and c == 3", ("a", "b", "c")),
        ("not (a == 1 and not b == 2)", "not (a == 1 and not b == 2)", ("a", "b")),
        (r"""a == "\"\\\n\t\u0001\u00e9\ud83d\ude00\u202e" """, r'''a == "\"\\\n\t\u0001é😀\u202e"''', ("a",)),
        ("\ta\n==\r\n-9223372036854775808 ", "a == -9223372036854775808", ("a",)),
        ("a == 007 or a == 'b'and`a`in['c']", 'a == 7 or a == "b" and a in ["c"]', ("a",)),
        ("a == 'one\nline'", r'a == "one\nline"', ("a",)),
        (
            "class == 1 and `lambda` == 2 and None == 3",
            "class == 1 and lambda == 2 and None == 3",
            ("class", "lambda", "None"),
        ),
        ("(a) == (1)", "a == 1", ("a",)),
        ("meta.lang in ['en'] or 1 < a.b.c", '`meta.lang` in ["en"] or `a.b.c` > 1', ("meta.lang", "a.b.c")),
    ],
)
def test_parse_condition_formats_equal_conditions_equally(
    text: str, canonical_text: str, columns: tuple[str, ...]
) -> None:
    condition = parse_condition(text)
    assert str(condition) == canonical_text and condition.columns == columns
    assert parse_condition(canonical_text) == condition


def test_conditions_with_values_of_different_types_differ() -> None:
    assert len({parse_condition(f"a == {value}") for value in ("1", "1.0", "true", '"1"')}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "f(x)",
            "condition 'f(x)': a function call at character 1; expected comparisons such as language == \"en\", "
            "joined with and, or, not",
        ),
        ('__import__("os")', "a function call at character 1; expected comparisons"),
        ("a == f(1)", "a function call as a value at character 6"),
        ("x.__class__", "the name x.__class__ at character 1; expected comparisons"),
        ("x.f() == 1", "a function call at character 1; expected the name of a column"),
        ("a.1 == 1", "a dot at character 2; expected a name such as meta.lang, a name in backticks"),
        ("a..b == 1", "a dot at character 2"),
        ("a[1] == 2", "an expression at character 1; expected the name of a column"),
        ("[a for a in b]", "invalid syntax at character 4"),
        ("lambda: 1", "the character ':' at character 7"),
        ("a == 1 if b == 2 else c", "invalid syntax at character 8"),
        ("a is null", "invalid syntax at character 3"),
        ("1 == 1", "a value compared with a value at character 1"),
        ("a == b", "the name b as a value at character 6; expected text in quotes, a number, true, false or null"),
        ("a == None", "the name None as a value at character 6"),
        ("a == True", "the name True as a value at character 6"),
        ("language == en", "the name en as a value at character 13"),
        ('"', "a quote that is never closed at character 1"),
        ("a == 'b", "a quote that is never closed at character 6"),
        ('a == "b\\"', "a quote that is never closed at character 6"),
        ("`a == 1", "a backtick that is never closed at character 1"),
        ("`` == 1", "an empty name in backticks at character 1"),
        ("`a\tb` == 1", "a control character in a name at character 1"),
        ("`a\u202eb` == 1", "a control character in a name at character 1"),
        ("a\x1b[2J == 1", r"the control character '\x1b' at character 2"),
        ("a == '\0'", r"the control character '\x00' at character 7; expected the escape \u0000 in quoted text"),
        ("a == '\ud800'", r"the control character '\ud800' at character 7"),
        (r"a == '\ud800'", "half of a surrogate pair at character 6"),
        (r"a == '\q'", r"the escape \q at character 7"),
        (r"a == '\x41'", r"the escape \x at character 7"),
        (r"a == '\N{BULLET}'", r"the escape \N at character 7"),
        ("a == '\\\n'", r"the escape \\n at character 7"),
        (r"a == '\u12'", r"the escape \u at character 7"),
        ("a == 'b' 'c'", "invalid syntax at character 10"),
        ("a == 'b''c'", "invalid syntax at character 9"),
        ("a == f'b'", "invalid syntax at character 7"),
        ("a == b'c'", "invalid syntax at character 7"),
        ("a == u'c'", "invalid syntax at character 7"),
        ('a == """b"""', "invalid syntax at character 8"),
        ("a == 9223372036854775808", "the number 9223372036854775808 at character 6; expected a whole number"),
        ("a == " + "9" * 3_990, "at character 6; expected a whole number of 64 bits"),
        ("a == 1e999", "the number 1e999 at character 6; expected a number that a 64-bit float can hold"),
        ("a == 1_000", "a malformed number at character 6"),
        ("a == 1.2.3", "a malformed number at character 6"),
        ("a == 0x10", "a malformed number at character 6"),
        ("a == 1j", "a malformed number at character 6"),
        ("a == 1or b == 2", "a malformed number at character 6"),
        ("a == - 5", "a malformed number at character 6"),
        ("a == --5", "a malformed number at character 6"),
        ("a == +5", "the character '+' at character 6"),
        ("a == 1 + 1", "the character '+' at character 8"),
        (
            "a >= .5",
            "a dot at character 6; expected a name such as meta.lang, a name in backticks, or a number such as 0.5",
        ),
        ("a = 5", "a single = at character 3; expected =="),
        ("(a := 5)", "the character ':' at character 4"),
        ("a && b", "& at character 3; expected and"),
        ("!a", "a single ! at character 1; expected != or not"),
        ("язык == 'ru'", "the character 'я' at character 1"),
        ("a == 1 # b", "the character '#' at character 8"),
        ("a == 1 \\\n or b == 1", r"the character '\\' at character 8"),
        ("0 < a < 5", "a second comparison at character 9; expected one at a time, such as 0 < score and score < 1"),
        ("(a == 1 == 1)", "a second comparison at character 12; expected one at a time"),
        ("a < null", "the value null in a comparison of order at character 5; expected == or !="),
        ("a >= true", "the value true in a comparison of order at character 6; expected == or !="),
        ("a in []", "an empty list at character 6"),
        ("a in [1 2]", "invalid syntax at character 9"),
        ("a in [1,]", "a comma after the last value at character 8"),
        ("a in [null]", "null in a list at character 7; expected a == null to find nulls"),
        ("a in [[1]]", "an expression as a value at character 7"),
        ("a in 5", 'the value 5 at character 6; expected a list, such as in ["ru", "en"]'),
        ("a in (5, 6)", 'an expression at character 6; expected a list, such as in ["ru", "en"]'),
        ("5 in [5]", "the value 5 at character 1; expected the name of a column"),
        ("a", "the name a at character 1; expected comparisons such as language"),
        ("not", "the end at character 4"),
        ("a == 1 and", "the end at character 11"),
        ("a == 1 b", "invalid syntax at character 8; expected comparisons"),
        ("a == 1, b == 2", "an expression at character 1"),
        ("(a == 1", "'(' was never closed at character 1"),
        ("a == 1)", "unmatched ')' at character 7"),
        ("", "the end at character 1"),
        ("(" * 10_000, "a condition must have at most 4,000 characters, got 10,000"),
        ("(" * 4_000, "too many nested parentheses at character 201"),
        ("not " * 1_000, "the end at character 4,000"),
        (
            "not " * 900 + "a == 1",
            f"nested too deeply at character {4 * MAX_DEPTH + 1}; expected at most {MAX_DEPTH} levels",
        ),
        ("a in [" * 190, "at character 1"),
        (
            "a == 1" + " or a==1" * 490,
            "a condition must have at most 4,000 characters in its canonical form, got 4,906",
        ),
    ],
)
def test_parse_condition_rejects_mistakes(text: str, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(MisuseError) as caught:
            parse_condition(text)
    assert message in str(caught.value)
    assert_one_line(str(caught.value))


def test_parse_condition_accepts_deep_and_long_conditions() -> None:
    for text in (
        "(" * MAX_DEPTH + "a == 1" + ")" * MAX_DEPTH,
        "not " * MAX_DEPTH + "a == 1",
        "a in [" + "1, " * 1_300 + "1]",
    ):
        assert select_rows(text, a=[1, 2, None]) == [True, False, False]


@given(st.text(max_size=60) | st.text(alphabet="ab `\"'\\()[],.=!<>-019endotru\x00\x1b\ud800", max_size=60))
def test_parse_condition_parses_or_rejects_any_text(text: str) -> None:
    try:
        condition = parse_condition(text)
    except MisuseError as error:
        assert_one_line(str(error))
    else:
        assert parse_condition(str(condition)) == condition


def test_parse_condition_takes_linear_time() -> None:
    started = time.perf_counter()
    repeated = ("(", "[", "f(", "a in [", "(not ", "(a and ", "a==([", "not not(")
    for text in (
        '"' * 3_999,
        '"' + "\\" * 3_999,
        "1" * 3_998 + "a",
        "-" * 4_000,
        "`" * 3_999,
        "a in [" + "1," * 1_990,
        *(part * 190 for part in repeated),
    ):
        with pytest.raises(MisuseError):
            parse_condition(text)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("text", "values", "selected"),
    [
        ("a == 1", [1, 2, None], [True, False, False]),
        ("a != 1", [1, 2, None], [False, True, False]),
        ("not a == 1", [1, 2, None], [False, True, True]),
        ("a not in [1]", [1, 2, None], [False, True, False]),
        ("a == null", [1, None], [False, True]),
        ("null != a", [1, None], [True, False]),
        ("a == null", pa.array([[1], None]), [False, True]),
        ("a == null or a == 1", pa.nulls(2), [True, True]),
        ("a == 1 or a in [1] or a not in [2] or a < 'x'", pa.nulls(2), [False, False]),
        ("a > -1 and a < 300 and a != 1e300 and a > -0.5", pa.array([0, 255, None], pa.uint8()), [True, True, False]),
        (
            "a == 300 or a == -1 or a == 0.5 or a in [300, -1, 0.5]",
            pa.array([44, 255, 0], pa.uint8()),
            [False, False, False],
        ),
        ("a > 9223372036854775807", pa.array([2**64 - 1, 5], pa.uint64()), [True, False]),
        ("a == 9007199254740993.0", pa.array([2**53, 2**53 + 1]), [True, False]),
        ("a < 2.5", [2, 3], [True, False]),
        ("a == 0.1 and a >= 0.1 and a in [0.1] and not a > 0.1", pa.array([0.1, 0.2], pa.float32()), [True, False]),
        ("a < 1e300", pa.array([1.5, math.inf], pa.float32()), [True, False]),
        ("a in [0]", [0.0, -0.0, math.nan, 1.0], [True, True, False, False]),
        ("a == 0.5", pa.array([np.float16(0.5), None]), [True, False]),
        ("a != 1", [math.nan, 1.0], [True, False]),
        ("a == true", [True, False, None], [True, False, False]),
        ("a in [false]", [True, False, None], [False, True, False]),
        ("a >= 'é'", ["e", "é", "😀", "\uffff", None], [False, True, True, True, False]),
        ("a in ['x', 'y']", pa.array(["x", "z", None], pa.string_view()), [True, False, False]),
        ("a == 'x'", pa.array(["x", "z", None], pa.large_string()), [True, False, False]),
        ("a == 'x'", pa.array(["x", "z", None, "x"]).dictionary_encode(), [True, False, False, True]),
        ("a > 1", pa.array([1, 2, None]).dictionary_encode(), [False, True, False]),
        (
            "a == null",
            pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["x", None])),
            [False, True, True],
        ),
        ("a == 'y'", pa.array(["x", "y", "z"])[1:], [True, False]),
        ("a == 1", pa.array([], pa.int64()), []),
    ],
)
def test_apply_selects_rows(text: str, values: Any, selected: list[bool]) -> None:
    assert select_rows(text, a=values) == selected


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        (
            "a > 5",
            ["x"],
            "condition 'a > 5': column a is of type string, compared with 5; expected text in quotes, such as \"en\"",
        ),
        ("a in ['x', true]", ["x"], "column a is of type string, compared with true"),
        ("a == 'x'", [1.5], 'column a is of type double, compared with "x"; expected a number, such as 0.5'),
        ("a == true", [1], "column a is of type int64, compared with true; expected a number"),
        ("a == 1", [True], "column a is of type bool, compared with 1; expected true or false"),
        (
            "a == 1",
            pa.array(["x"]).dictionary_encode(),
            "column a is of type dictionary<values=string, indices=int32, ordered=0>, compared with 1",
        ),
        ("a == 1", [[1]], "expected null, the only value that such a column can be compared with"),
        ("a == 1", [b"x"], "column a is of type binary"),
        ("b == 1", [1], "condition 'b == 1': no column is called b; the table has a"),
        ("a == '" + "\\n" * 900 + "'", [1], "expected a number"),
        ("a == 1", pa.array([{"k" * 900: 1}]), "column a is of type struct<kkk"),
    ],
)
def test_apply_rejects_missing_columns_and_other_types(text: str, values: Any, message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        select_rows(text, a=values)
    assert message in str(caught.value)
    assert_one_line(str(caught.value))


# Random conditions are compared with a Python loop over rows.

COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy]] = {
    "word": (pa.string(), st.sampled_from(["", "a", "b", "é", "😀", "\n"])),
    "text": (pa.large_string(), st.sampled_from(["a", "b", '"\\'])),
    "label": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
    "small": (pa.int8(), st.integers(-3, 3)),
    "tiny": (pa.uint8(), st.sampled_from([0, 1, 255])),
    "count": (pa.int64(), st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1)),
    "huge": (pa.uint64(), st.integers(0, 3) | st.integers(0, 2**64 - 1)),
    "odd name": (pa.float64(), st.sampled_from([-0.0, 0.0, 0.5, 1.0, 2.0**53, math.inf, math.nan])),
    "half": (pa.float32(), st.sampled_from([0.0, 0.5, 1.0, -2.5, math.nan])),
    "flag": (pa.bool_(), st.booleans()),
}
NUMBERS = (
    st.integers(-4, 4)
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([-0.0, 0.5, 1.0, -2.5, 300, 255.5, 1e300, 2.0**53])
)
ORDERS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def literals(column: str) -> st.SearchStrategy:
    data_type = COLUMNS[column][0]
    if pa.types.is_boolean(data_type):
        return st.booleans()
    if pa.types.is_integer(data_type):
        return NUMBERS
    # A float column rounds whole numbers beyond 2**53, which Python does not do.
    return (
        st.sampled_from([-0.0, 0, 0.5, 1, -2.5, 3])
        if pa.types.is_floating(data_type)
        else st.text(max_size=3) | COLUMNS["word"][1]
    )


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    column = draw(st.sampled_from(list(COLUMNS)))
    if draw(st.booleans()):
        return Comparison(
            column,
            draw(st.sampled_from(["in", "not in"])),
            tuple(draw(st.lists(literals(column), min_size=1, max_size=4))),
        )
    orders = ["==", "!="] if column == "flag" else list(ORDERS)
    value = draw(st.none() | literals(column))
    return Comparison(column, draw(st.sampled_from(orders if value is not None else ["==", "!="])), value)


trees = st.recursive(
    comparisons(),
    lambda part: (
        part.map(Negation)
        | st.builds(Junction, st.sampled_from(["and", "or"]), st.lists(part, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=6,
)
tables = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}), max_size=6
)


def format_value(value: Any) -> str:
    if isinstance(value, str):
        units = value.encode("utf-16-be", "surrogatepass")
        return "'" + "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)) + "'"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    )


def format_with_parentheses(node: Node) -> str:
    if isinstance(node, Negation):
        return f"not ({format_with_parentheses(node.part)})"
    if isinstance(node, Junction):
        return f" {node.word} ".join(f"({format_with_parentheses(part)})" for part in node.parts)
    value = (
        f"[{', '.join(map(format_value, node.value))}]" if isinstance(node.value, tuple) else format_value(node.value)
    )
    return f"`{node.column}` {node.operator} {value}"


def is_selected(node: Node, row: dict[str, Any]) -> bool:
    if isinstance(node, Negation):
        return not is_selected(node.part, row)
    if isinstance(node, Junction):
        return (all if node.word == "and" else any)(is_selected(part, row) for part in node.parts)
    value = row[node.column]
    if node.value is None:
        return (value is None) == (node.operator == "==")
    if value is None:
        return False
    if isinstance(node.value, tuple):
        return any(value == v for v in node.value) == (node.operator == "in")
    return bool(ORDERS[node.operator](value, node.value))


@given(trees, tables)
def test_apply_agrees_with_a_loop_over_rows(tree: Node, table: list[dict[str, Any]]) -> None:
    condition = parse_condition(format_with_parentheses(tree))
    arrays = {name: pa.array([row[name] for row in table], data_type) for name, (data_type, _) in COLUMNS.items()}
    assert condition.apply(arrays).to_pylist() == [is_selected(tree, row) for row in table]


@given(trees)
def test_str_of_a_condition_parses_to_the_same_condition(tree: Node) -> None:
    condition = parse_condition(format_with_parentheses(tree))
    again = parse_condition(str(condition))
    assert (
        isinstance(again, Condition)
        and again == condition
        and again.tree == condition.tree
        and str(again) == str(condition)
    )
    assert len(str(condition)) <= MAX_CHARACTERS and again.columns == condition.columns
