"""Conditions that select rows of a table, such as `score >= 0.5 and not (lang in ["ru", "en"])`.

    condition  = comparison | "(" condition ")" | "not" condition
               | condition "and" condition | condition "or" condition
    comparison = column ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) value
               | column [ "not" ] "in" "[" value { "," value } "]"
    column     = a name of ASCII letters, digits and _, several of them joined by dots, or any name in backticks
    value      = text in single or double quotes, a number, true, false, null

The value of a comparison may also be on the left. Text is ordered by code points. If the column is
null in a row, every comparison is false for this row, even `!=` and `not in`. `not` inverts this
result too, so `not (x == 1)` selects rows with a null x. Only `== null` and `!= null` test for
nulls.

The grammar is a subset of Python's, so Python's parser decides precedence and parentheses. No
Python code is evaluated: columns and values are read here and replaced by the placeholder `_`. From

    `my column` == "x" or score > 0.5

Python's parser sees `_ == _ or _ > _`, and its syntax tree is converted into the nodes below.
Python's grammar has more, such as calls, f-strings, 0x10, 1_000 and adjacent strings. All of that
is rejected when columns and values are read, by Python's parser, or during the conversion.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from preprocess.errors import MAX_SHOWN, MisuseError, one_line, shorten

if TYPE_CHECKING:
    import pyarrow as pa

    from preprocess.recipes.columns import Value

MAX_CHARACTERS = 4_000
MAX_DEPTH = 100  # levels of `and`, `or` and `not`; Python's parser allows 200 nested parentheses

MAX_EXACT = 2**53  # float64 represents all integers up to it

EXAMPLE = 'comparisons such as language == "en", joined with and, or, not'
TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
      | `(?P<name>[^`]*)`
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<mark>[=!<>]=|[<>()\[\],])""",
    re.DOTALL | re.VERBOSE,
)
# Control characters except TOML's white space, and surrogates.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONSTANTS = {"true": True, "false": False, "null": None}
KEYWORDS = ("and", "or", "not", "in")
ESCAPES = {'"': '"', "'": "'", "\\": "\\", "n": "\n", "t": "\t", "r": "\r"}
OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
# Characters that cannot begin a token: what the error message calls them, and what it expects.
MISTAKES = {
    '"': ("a quote that is never closed", 'text such as "en"'),
    "'": ("a quote that is never closed", "text such as 'en'"),
    "`": ("a backtick that is never closed", "a column such as `my column`"),
    "=": ("a single =", "=="),
    "!": ("a single !", "!= or not"),
    "&": ("&", "and"),
    "|": ("|", "or"),
    ".": ("a dot", "a name such as meta.lang, a name in backticks, or a number such as 0.5"),
    **dict.fromkeys("-0123456789", ("a malformed number", "a number such as 5, -0.5 or 1e6")),
}
EXPECTED = {"text": 'text in quotes, such as "en"', "number": "a number, such as 0.5", "boolean": "true or false"}


@dataclass(frozen=True)
class Comparison:
    """A comparison of a column with a value, or with a tuple of values for "in" and "not in"."""

    column: str
    operator: str  # a value of OPERATORS
    value: Value | tuple[Value, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        return self.value if isinstance(self.value, tuple) else (self.value,)


@dataclass(frozen=True)
class Negation:
    """`not part`."""

    part: Node


@dataclass(frozen=True)
class Junction:
    """The parts joined by `and` or `or`."""

    word: str  # "and" or "or"
    parts: tuple[Node, ...]  # two or more; a Junction among them has the other word


Node = Comparison | Negation | Junction


@dataclass(frozen=True)
class Condition:
    """A parsed condition. Two conditions are equal if their canonical texts are.

    `parse_condition(str(condition))` returns an equal condition.
    """

    canonical_text: str
    tree: Node = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.canonical_text

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the condition uses, each once, in order of appearance."""
        return tuple(dict.fromkeys(comparison.column for comparison in _iter_comparisons(self.tree)))

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of the values that each column is compared with.

        It is "text", "number" or "boolean", "mixed" if these occur together, and "null" if the
        column is compared only with null. It is "exact number" instead of "number" if a value is at
        least MAX_EXACT (exact_numbers.py).
        """
        values: dict[str, list[Value]] = {name: [] for name in self.columns}
        for comparison in _iter_comparisons(self.tree):
            values[comparison.column].extend(value for value in comparison.values if value is not None)
        return {name: _get_common_kind(found) for name, found in values.items()}

    def apply(self, table: Mapping[str, pa.Array]) -> pa.BooleanArray:
        """Return which rows of `table` satisfy the condition: (R,) bool, without nulls.

        `table` maps column names to columns of R rows. Raises MisuseError if a column is missing,
        or if its type cannot be compared with the value in the condition.
        """
        return _evaluate(self.tree, table, self.canonical_text)


def parse_condition(text: str) -> Condition:
    """Parse a condition.

    Raises MisuseError with one line that says what was found, at which character, and what was
    expected.
    """
    if len(text) > MAX_CHARACTERS:
        raise MisuseError(f"a condition must have at most {MAX_CHARACTERS:,} characters, got {len(text):,}")
    tree = _Parser(text.strip(" \t\r\n")).parse()
    canonical_text = _format(tree)
    if len(canonical_text) > MAX_CHARACTERS:  # spaces and escapes can make it longer than `text`
        raise MisuseError(
            f"a condition must have at most {MAX_CHARACTERS:,} characters in its canonical form, got "
            f"{len(canonical_text):,}"
        )
    return Condition(canonical_text, tree)


def _get_kind(value: Value) -> str:
    if value is None:
        return "null"
    return "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"


def _get_common_kind(values: list[Value]) -> str:
    kinds = {_get_kind(value) for value in values}
    if len(kinds) > 1:
        return "mixed"
    is_large = any(isinstance(value, int | float) and abs(value) >= MAX_EXACT for value in values)
    return "exact number" if is_large else next(iter(kinds), "null")


# Parsing.


class _Parser:
    """Parses one condition.

    Python parses `source`, in which every token of n characters is padded with spaces to 2n
    characters. So tokens are always separated, and position p of `source` is position p // 2 of the
    text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: dict[int, str] = {}  # by position in the text
        self.values: dict[int, Value] = {}  # by position in the text
        self.source = self._replace_operands()

    def parse(self) -> Node:
        try:
            tree = ast.parse(self.source, mode="eval")
        except SyntaxError as error:
            # The offset counts from 1. At the end of the source it is 0, as if a new line began.
            position = (error.offset - 1) // 2 if error.offset else len(self.text)
            found = "the end" if position >= len(self.text) else error.msg.partition(". ")[0]
            self._reject(position, found, EXAMPLE)
        except (MemoryError, RecursionError):
            self._reject(0, "a condition that is nested too deeply", f"at most {MAX_DEPTH} levels of and, or and not")
        return self._convert(tree.body, depth=0)

    def _replace_operands(self) -> str:
        if match := CONTROL.search(self.text):
            code = f"\\u{ord(match[0]):04x}"
            self._reject(match.start(), f"the control character {match[0]!r}", f"the escape {code} in quoted text")
        source = []
        position = 0
        while position < len(self.text):
            match = TOKEN.match(self.text, position)
            if match is None:
                character = self.text[position]
                default = (f"the character {character!r}", f"{EXAMPLE}; other names of columns need backticks")
                self._reject(position, *MISTAKES.get(character, default))
            source.append(self._replace_operand(match).ljust(2 * len(match[0])))
            position = match.end()
        return "".join(source)

    def _replace_operand(self, match: re.Match[str]) -> str:
        kind, token, position = match.lastgroup, match[match.lastgroup or 0], match.start()
        if kind == "space":
            return ""
        if kind == "mark" or (kind == "word" and token in KEYWORDS):
            return token
        if kind == "word" and token in CONSTANTS:
            self.values[position] = CONSTANTS[token]
        elif kind == "word":  # also Python's keywords, such as a column `class`
            self.columns[position] = token
        elif kind == "name":
            if not token or one_line(token) != token:
                mistake = "a control character in a name" if token else "an empty name in backticks"
                self._reject(position, mistake, "the name of a column")
            self.columns[position] = token
        elif kind == "number":
            self.values[position] = self._parse_number(token, position)
        else:
            self.values[position] = self._parse_text(token, position)
        return "_"

    def _parse_number(self, token: str, position: int) -> int | float:
        if token.lstrip("-").isdigit():
            # int() raises ValueError for more than 4,300 digits; a 64-bit number has at most 19.
            number = int(token) if len(token) < 1_000 else 1 << 64
            if not -(1 << 63) <= number < 1 << 63:
                expected = "a whole number of 64 bits, or a number with a point or exponent"
                self._reject(position, f"the number {shorten(token)}", expected)
            return number
        if not math.isfinite(real := float(token)):
            self._reject(position, f"the number {shorten(token)}", "a number that a 64-bit float can hold")
        return real

    def _parse_text(self, token: str, position: int) -> str:
        def unescape(match: re.Match[str]) -> str:
            escape = match[1]
            if len(escape) == 5:
                return chr(int(escape[1:], 16))
            if escape not in ESCAPES:
                expected = r"one of \" \' \\ \n \t \r, or \u and four hexadecimal digits"
                self._reject(position + match.start(), f"the escape \\{one_line(escape)}", expected)
            return ESCAPES[escape]

        units = re.sub(r"\\(u[0-9A-Fa-f]{4}|.)", unescape, token[:-1], flags=re.DOTALL)[1:]
        try:  # as in JSON, \ud83d\ude00 is one character
            return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._reject(
                position, "half of a surrogate pair", r"both halves, such as \ud83d\ude00, or the character itself"
            )

    def _convert(self, node: ast.expr, depth: int) -> Node:
        match node:
            case ast.BoolOp() | ast.UnaryOp(op=ast.Not()) if depth >= MAX_DEPTH:
                self._reject(node, "and, or and not nested too deeply", f"at most {MAX_DEPTH} levels")
            case ast.BoolOp(op=op, values=values):
                return _join("and" if isinstance(op, ast.And) else "or", [self._convert(v, depth + 1) for v in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Negation(self._convert(operand, depth + 1))
            case ast.Compare(ops=[_], comparators=[_]):
                return self._convert_comparison(node)
            case ast.Compare():
                self._reject(
                    node.comparators[1], "a second comparison", "one at a time, such as 0 < score and score < 1"
                )
        self._reject(node, self._describe(node), EXAMPLE)

    def _convert_comparison(self, node: ast.Compare) -> Comparison:
        left, operator, right = node.left, OPERATORS[type(node.ops[0])], node.comparators[0]
        if operator in ("in", "not in"):
            column = self._get_column(left)
            return Comparison(column, operator, self._get_list(right, column))
        if _get_position(left) in self.values:
            if _get_position(right) in self.values:
                self._reject(left, "a value compared with a value", EXAMPLE)
            left, operator, right = right, MIRRORED[operator], left
        column, value = self._get_column(left), self._get_value(right)
        if operator not in ("==", "!=") and (value is None or isinstance(value, bool)):
            self._reject(right, f"{self._describe(right)} in a comparison of order", "== or !=")
        return Comparison(column, operator, value)

    def _get_column(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name) or _get_position(node) not in self.columns:
            self._reject(node, self._describe(node), 'the name of a column, as in language == "en"')
        return self.columns[_get_position(node)]

    def _get_value(self, node: ast.expr) -> Value:
        if not isinstance(node, ast.Name) or _get_position(node) not in self.values:
            self._reject(node, f"{self._describe(node)} as a value", "text in quotes, a number, true, false or null")
        return self.values[_get_position(node)]

    def _get_list(self, node: ast.expr, column: str) -> tuple[Value, ...]:
        if not isinstance(node, ast.List):
            self._reject(node, self._describe(node), 'a list, such as in ["ru", "en"]')
        inside = self.source[node.col_offset : node.end_col_offset].rstrip("] ")
        if inside.endswith(","):  # Python's syntax tree does not show it
            self._reject(
                _get_position(node) + len(inside) // 2, "a comma after the last value", "a list such as [1, 2]"
            )
        if not node.elts:
            self._reject(node, "an empty list", 'a list of values, such as ["ru", "en"]')
        values = tuple(self._get_value(element) for element in node.elts)
        if None in values:
            self._reject(node.elts[values.index(None)], "null in a list", f"{shorten(column)} == null to find nulls")
        return values

    def _describe(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            position = _get_position(node)
            if position in self.columns:
                return f"the name {shorten(self.columns[position])}"
            return f"the value {shorten(_format_value(self.values[position]))}"
        return "a function call" if isinstance(node, ast.Call) else "an expression"

    def _reject(self, location: ast.expr | int, found: str, expected: str) -> NoReturn:
        position = location if isinstance(location, int) else _get_position(location)
        start = max(0, position - MAX_SHOWN // 2) if len(self.text) > MAX_SHOWN else 0
        excerpt = ("…" if start else "") + shorten(self.text[start:])
        raise MisuseError(f"condition '{excerpt}': {found} at character {position + 1:,}; expected {expected}")


def _get_position(node: ast.expr) -> int:
    """Return the position of a node's first token in the text."""
    return node.col_offset // 2


def _join(word: str, parts: list[Node]) -> Junction:
    """Join `parts`. `a and (b and c)` becomes one Junction of three parts."""
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Junction) and part.word == word else (part,))
    return Junction(word, tuple(flat))


# Formatting.


def _iter_comparisons(node: Node) -> Iterator[Comparison]:
    if isinstance(node, Comparison):
        yield node
    else:
        for part in node.parts if isinstance(node, Junction) else (node.part,):
            yield from _iter_comparisons(part)


def _format(node: Node) -> str:
    if isinstance(node, Junction):
        return f" {node.word} ".join(_format_part(node, part) for part in node.parts)
    if isinstance(node, Negation):
        return f"not {_format_part(node, node.part)}"
    is_plain = PLAIN_NAME.fullmatch(node.column) and node.column not in (*KEYWORDS, *CONSTANTS)
    column = node.column if is_plain else f"`{node.column}`"
    if isinstance(node.value, tuple):
        return f"{column} {node.operator} [{', '.join(map(_format_value, node.value))}]"
    return f"{column} {node.operator} {_format_value(node.value)}"


def _format_part(parent: Negation | Junction, part: Node) -> str:
    needs_parentheses = isinstance(part, Junction) and (isinstance(parent, Negation) or part.word == "or")
    return f"({_format(part)})" if needs_parentheses else _format(part)


def _format_value(value: Value) -> str:
    if isinstance(value, str):
        escapes = {character: f"\\{letter}" for letter, character in ESCAPES.items() if character != "'"}
        return '"' + "".join(escapes.get(c) or (c if one_line(c) == c else _escape(c)) for c in value) + '"'
    if value is None or isinstance(value, bool):
        return next(word for word, constant in CONSTANTS.items() if constant is value)
    return repr(value)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


# Evaluation. Only these functions import Arrow, so that a recipe can be checked without it.


def _evaluate(node: Node, table: Mapping[str, pa.Array], text: str) -> pa.BooleanArray:
    import pyarrow.compute as pc

    if isinstance(node, Comparison):
        return _compare(node, table, text)
    if isinstance(node, Negation):
        return pc.invert(_evaluate(node.part, table, text))
    combine = pc.and_ if node.word == "and" else pc.or_
    return functools.reduce(combine, (_evaluate(part, table, text) for part in node.parts))


def _compare(node: Comparison, table: Mapping[str, pa.Array], text: str) -> pa.BooleanArray:
    import pyarrow.compute as pc

    from preprocess.recipes import columns

    name = shorten(node.column)
    if node.column not in table:
        known = ", ".join(shorten(n) for n in list(table)[:20])
        raise MisuseError(
            f"condition '{shorten(text)}': no column is called {name}; the table has {known or 'no columns'}"
        )
    column = table[node.column]
    if node.value is None:
        return columns.is_null(column) if node.operator == "==" else pc.invert(columns.is_null(column))
    column_kind = columns.get_kind(column.type)
    for value in node.values:
        if column_kind not in ("null", _get_kind(value)):
            expected = EXPECTED.get(column_kind, "null, the only value that such a column can be compared with")
            raise MisuseError(
                f"condition '{shorten(text)}': column {name} is of type {shorten(str(column.type))}, compared with "
                f"{shorten(_format_value(value))}; expected {expected}"
            )
    if not isinstance(node.value, tuple):
        return columns.compare(column, node.operator, node.value)
    found = columns.is_in(column, node.value)
    return found if node.operator == "in" else pc.and_not(pc.invert(columns.is_null(column)), found)
