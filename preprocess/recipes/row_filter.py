"""Conditions: which rows of a table a recipe takes, such as `score >= 0.5 and not (lang in ["ru", "en"])`.

    condition   = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" condition ")" | comparison
    comparison  = column ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) value | column [ "not" ] "in" "[" value { "," value } "]"
    column      = a plain name, or any name in backticks
    value       = text in single or double quotes, a number, true, false, null

The value of a comparison may also stand first. A comparison with a null in the column is false, `!=` and `not in` too;
`not` turns it as any other. Only `== null` and `!= null` find nulls. Text is ordered by code points.

Parsed here, never evaluated as Python; Arrow is loaded only to apply a condition.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from preprocess.errors import MAX_SHOWN, MisuseError, one_line, shown

if TYPE_CHECKING:
    import pyarrow as pa

    from preprocess.recipes.columns import Value

MAX_CHARACTERS = 4_000
MAX_DEPTH = 50  # of parentheses and `not` within each other; the parser takes four Python frames for each

EXAMPLE = 'comparisons of columns with values, such as language == "en"'
TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![A-Za-z0-9_.]))
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | `(?P<name>[^`]*)`
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<operator>[=!<>]=|[<>])
      | (?P<mark>[()\[\],])""",
    re.DOTALL | re.VERBOSE,
)
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]"
)  # all but the white space of TOML, and half characters
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONSTANTS = {"true": True, "false": False, "null": None}
KEYWORDS = ("and", "or", "not", "in")
ESCAPES = {'"': '"', "'": "'", "\\": "\\", "n": "\n", "t": "\t", "r": "\r"}
MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
# What stands where no token can begin: what to call it, and what to write instead.
STRAY = {
    '"': ("a quote that is never closed", 'text such as "en"'),
    "'": ("a quote that is never closed", "text such as 'en'"),
    "`": ("a backtick that is never closed", "a column such as `my column`"),
    "=": ("a single =", "=="),
    "!": ("a single !", "!= or not"),
    "&": ("&", "and"),
    "|": ("|", "or"),
    ".": ("a dot", "the plain name of a column; one of other characters than letters, digits and _ goes in backticks"),
    **dict.fromkeys("-0123456789", ("a number misspelled", "one such as 5, -0.5 or 1e6")),
}
WANTED = {"text": 'text in quotes, such as "en"', "number": "a number, such as 0.5", "boolean": "true or false"}


@dataclass(frozen=True)
class Comparison:
    column: str
    operator: str  # one of MIRRORED, or "in", "not in"
    value: Value | tuple[Value, ...]  # a tuple for the last two


@dataclass(frozen=True)
class Negation:
    part: Node


@dataclass(frozen=True)
class Junction:
    word: str  # "and", "or"
    parts: tuple[Node, ...]  # none of them a junction of the same word


Node = Comparison | Negation | Junction


@dataclass(frozen=True)
class Condition:
    """A parsed condition. Its canonical spelling is its identity: `parse_condition(str(c)) == c`."""

    spelling: str
    tree: Node = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.spelling

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it looks at, in the order they appear."""
        return tuple(dict.fromkeys(_columns(self.tree)))

    @property
    def kinds(self) -> dict[str, str]:
        """What each column is compared with: "text", "number" or "boolean"; "null" where with nothing else, "mixed" where with several."""
        kinds: dict[str, set[str]] = {name: set() for name in self.columns}
        for comparison in _comparisons(self.tree):
            values = comparison.value if isinstance(comparison.value, tuple) else (comparison.value,)
            kinds[comparison.column].update(_kind(value) for value in values if value is not None)
        return {
            name: (found.pop() if len(found) == 1 else "mixed" if found else "null") for name, found in kinds.items()
        }

    def apply(self, table_columns: Mapping[str, pa.Array]) -> pa.BooleanArray:
        """Which rows it chooses, without nulls. Raises MisuseError for a column that is missing or of another type."""
        return _evaluate(self.tree, table_columns, self.spelling)


def parse_condition(text: str) -> Condition:
    """`text` as a condition. Raises MisuseError with one line that says what was got, where, and what was wanted."""
    tree = _Parser(text).parse()
    spelling = _format(tree)
    if len(spelling) > MAX_CHARACTERS:  # escapes and spaces may lengthen it, and it must be readable again
        raise MisuseError(
            f"a condition of {len(spelling):,} characters once spelled out; wanted at most {MAX_CHARACTERS:,}"
        )
    return Condition(spelling, tree)


# Text to tokens.


@dataclass(frozen=True)
class _Token:
    kind: str  # name, value, operator, keyword, mark, end
    value: Value
    place: int  # in the text, from 0

    def __str__(self) -> str:
        if self.kind == "end":
            return "the end"
        return (
            f"the value {shown(_format_value(self.value))}"
            if self.kind == "value"
            else f"the {self.kind} {shown(str(self.value))}"
        )


def _tokens(text: str) -> Iterator[_Token]:
    if len(text) > MAX_CHARACTERS:
        raise MisuseError(f"a condition of {len(text):,} characters; wanted at most {MAX_CHARACTERS:,}")
    if stray := CONTROL.search(text):
        wanted = f"it written \\u{ord(stray[0]):04x} within quotes, or not at all"
        _reject(text, stray.start(), f"the control character {stray[0]!r}", wanted)
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            known = STRAY.get(text[place])
            got, wanted = known or (
                f"the character {text[place]!r}",
                f"{EXAMPLE}; odd names of columns go in backticks",
            )
            _reject(text, place, got, wanted)
        if match.lastgroup != "space":
            yield _token(text, match)
        place = match.end()
    yield _Token("end", None, len(text))


def _token(text: str, match: re.Match[str]) -> _Token:
    group, place = match.lastgroup or "", match.start()
    spelled = match[group]
    if group == "word":
        if spelled in CONSTANTS:
            return _Token("value", CONSTANTS[spelled], place)
        return _Token("keyword" if spelled in KEYWORDS else "name", spelled, place)
    if group == "name":
        if not spelled or one_line(spelled) != spelled:
            _reject(
                text,
                place,
                "backticks around nothing" if not spelled else "a control character in a name",
                "the name of a column",
            )
        return _Token("name", spelled, place)
    if group == "number":
        return _Token("value", _number(text, spelled, place), place)
    if group == "text":
        return _Token("value", _unquoted(text, spelled, place), place)
    return _Token(group, spelled, place)


def _number(text: str, spelled: str, place: int) -> int | float:
    if spelled.lstrip("-").isdigit():
        whole = (
            int(spelled) if len(spelled) < 1_000 else 1 << 64
        )  # Python refuses to read ints of more than 4,300 digits
        if not -(1 << 63) <= whole < 1 << 63:
            _reject(
                text, place, f"the number {shown(spelled)}", "whole numbers of 64 bits, or one with a point or exponent"
            )
        return whole
    if not math.isfinite(number := float(spelled)):
        _reject(text, place, f"the number {shown(spelled)}", "numbers that a 64-bit float can hold")
    return number


def _unquoted(text: str, spelled: str, place: int) -> str:
    def unescaped(match: re.Match[str]) -> str:
        escape = match[1]
        if len(escape) == 5:
            return chr(int(escape[1:], 16))
        if escape not in ESCAPES:
            _reject(
                text,
                place + match.start(),
                f"the escape \\{one_line(escape)}",
                r"one of \" \' \\ \n \t \r \u and four hexadecimal digits",
            )
        return ESCAPES[escape]

    value = re.sub(r"\\(u[0-9A-Fa-f]{4}|.)", unescaped, spelled[:-1], flags=re.DOTALL)[1:]
    try:  # \ud83d\ude00 is one character, as in JSON
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        _reject(text, place, "half of a surrogate pair", r"both halves, such as \ud83d\ude00, or the character itself")


# Tokens to a tree.


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.place = 0  # of the next token in `tokens`
        self.depth = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.place]

    def take(self) -> _Token:
        token = self.next
        self.place += token.kind != "end"
        return token

    def accept(self, kind: str, value: str) -> bool:
        if is_there := (self.next.kind, self.next.value) == (kind, value):
            self.take()
        return is_there

    def refuse(self, wanted: str) -> NoReturn:
        _reject(self.text, self.next.place, str(self.next), wanted)

    def parse(self) -> Node:
        tree = self.disjunction()
        if self.next.kind != "end":
            self.refuse("`and`, `or` or the end")
        return tree

    def disjunction(self) -> Node:
        return self.junction("or", lambda: self.junction("and", self.negation))

    def junction(self, word: str, parse_part: Callable[[], Node]) -> Node:
        parts = [parse_part()]
        while self.accept("keyword", word):
            parts.append(parse_part())
        flat = [
            p for part in parts for p in (part.parts if isinstance(part, Junction) and part.word == word else (part,))
        ]
        return Junction(word, tuple(flat)) if len(parts) > 1 else parts[0]

    def negation(self) -> Node:
        if self.depth > MAX_DEPTH:
            self.refuse(f"parentheses and `not` at most {MAX_DEPTH} deep")
        self.depth += 1
        node: Node
        if self.accept("keyword", "not"):
            node = Negation(self.negation())
        elif self.accept("mark", "("):
            node = self.disjunction()
            if not self.accept("mark", ")"):
                self.refuse("`and`, `or` or `)`")
        else:
            node = self.comparison()
        self.depth -= 1
        return node

    def comparison(self) -> Comparison:
        place = self.next.place
        if self.next.kind == "value":
            value = self.take()
            operator = self.operator(f"a comparison after {value}; a column goes before `in`")
            if self.next.kind == "value":
                _reject(self.text, place, "a value compared with a value", EXAMPLE)
            column, operator = self.column(), MIRRORED[operator]
        else:
            column = self.column()
            if self.next.value in ("in", "not") and self.next.kind == "keyword":
                return self.membership(column)
            operator = self.operator(f"what to compare {shown(column)} with, such as == true or in [1, 2]")
            value = self.value()
        if operator not in ("==", "!=") and (value.value is None or isinstance(value.value, bool)):
            _reject(self.text, place, f"{value} compared by size", "== or !=")
        if self.next.kind == "operator":
            self.refuse("one comparison at a time, such as 0 < score and score < 1")
        return Comparison(column, operator, value.value)

    def membership(self, column: str) -> Comparison:
        is_negated = self.accept("keyword", "not")
        if not (self.accept("keyword", "in") and self.accept("mark", "[")):
            self.refuse('a list, such as in ["ru", "en"]')
        values: list[Value] = []
        while not values or self.accept("mark", ","):
            if self.next.value is None and self.next.kind == "value":
                self.refuse(f"values; a null is found by {shown(column)} == null")
            values.append(self.value().value)
        if not self.accept("mark", "]"):
            self.refuse("`,` or `]`")
        return Comparison(column, "not in" if is_negated else "in", tuple(values))

    def operator(self, wanted: str) -> str:
        if self.next.kind != "operator":
            self.refuse(wanted)
        return str(self.take().value)

    def column(self) -> str:
        if self.next.kind != "name":
            self.refuse(EXAMPLE)
        token = self.take()
        if (self.next.kind, self.next.value) == ("mark", "("):
            _reject(self.text, self.next.place, "a function call", EXAMPLE)
        return str(token.value)

    def value(self) -> _Token:
        if self.next.kind == "name":
            place, name = self.next.place, self.column()
            _reject(
                self.text, place, f"the name {shown(name)} as a value", "text in quotes, a number, true, false or null"
            )
        if self.next.kind != "value":
            self.refuse("text in quotes, a number, true, false or null")
        return self.take()


# A tree to text, and to rows.


def _comparisons(node: Node) -> Iterator[Comparison]:
    if isinstance(node, Comparison):
        yield node
    else:
        for part in node.parts if isinstance(node, Junction) else (node.part,):
            yield from _comparisons(part)


def _kind(value: Value) -> str:
    return "text" if isinstance(value, str) else "boolean" if isinstance(value, bool) else "number"


def _columns(node: Node) -> Iterator[str]:
    if isinstance(node, Comparison):
        yield node.column
    else:
        for part in (node.part,) if isinstance(node, Negation) else node.parts:
            yield from _columns(part)


def _format(node: Node) -> str:
    if isinstance(node, Junction):
        return f" {node.word} ".join(_format_within(node, part) for part in node.parts)
    if isinstance(node, Negation):
        return f"not {_format_within(node, node.part)}"
    is_plain = PLAIN_NAME.fullmatch(node.column) and node.column not in (*KEYWORDS, *CONSTANTS)
    value = (
        f"[{', '.join(map(_format_value, node.value))}]" if isinstance(node.value, tuple) else _format_value(node.value)
    )
    return f"{node.column if is_plain else f'`{node.column}`'} {node.operator} {value}"


def _format_within(node: Negation | Junction, part: Node) -> str:
    is_looser = isinstance(part, Junction) and (isinstance(node, Negation) or part.word == "or")
    return f"({_format(part)})" if is_looser else _format(part)


def _format_value(value: Value) -> str:
    if not isinstance(value, str):
        return (
            {None: "null", True: "true", False: "false"}[value]
            if value is None or isinstance(value, bool)
            else repr(value)
        )
    escapes = {character: f"\\{letter}" for letter, character in ESCAPES.items() if character != "'"}
    return '"' + "".join(escapes.get(c) or (c if one_line(c) == c else _format_units(c)) for c in value) + '"'


def _format_units(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _evaluate(node: Node, table: Mapping[str, pa.Array], spelling: str) -> pa.BooleanArray:
    import pyarrow.compute as pc

    if isinstance(node, Comparison):
        return _compare(node, table, spelling)
    if isinstance(node, Negation):
        return pc.invert(_evaluate(node.part, table, spelling))
    combine = pc.and_ if node.word == "and" else pc.or_
    return functools.reduce(combine, (_evaluate(part, table, spelling) for part in node.parts))


def _compare(node: Comparison, table: Mapping[str, pa.Array], spelling: str) -> pa.BooleanArray:
    import pyarrow.compute as pc

    from preprocess.recipes import columns

    name = shown(node.column)
    if node.column not in table:
        known = ", ".join(shown(n) for n in list(table)[:20])
        raise MisuseError(
            f"condition '{shown(spelling)}': no column is called {name}; the table has {known or 'no columns'}"
        )
    column = table[node.column]
    if node.value is None:
        return columns.is_null(column) if node.operator == "==" else pc.invert(columns.is_null(column))
    values = node.value if isinstance(node.value, tuple) else (node.value,)
    held = columns.kind(column.type)
    for value in values:
        if held not in ("null", columns.kind_of_value(value)):
            got = f"column {name} holds {shown(str(column.type))}, compared with {shown(_format_value(value))}"
            raise MisuseError(
                f"condition '{shown(spelling)}': {got}; wanted {WANTED.get(held, 'null, which alone compares with it')}"
            )
    if not isinstance(node.value, tuple):
        return columns.compare(column, node.operator, node.value)
    found = columns.is_in(column, node.value)
    return found if node.operator == "in" else pc.and_not(pc.invert(columns.is_null(column)), found)


def _reject(text: str, place: int, got: str, wanted: str) -> NoReturn:
    start = max(0, place - MAX_SHOWN // 2) if len(text) > MAX_SHOWN else 0
    around = ("…" if start else "") + shown(text[start:])
    raise MisuseError(f"condition '{around}': {got} at column {place + 1:,}; wanted {wanted}")
