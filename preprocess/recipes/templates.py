"""Templates that join columns into one text, and patterns that find metadata in file names.

A template such as `"Q: {query}\\n\\nA: {answer}"` has the syntax of Python's str.format, restricted
to column names, in which dots may lead into nested values (nested.py). Braces in the value of a
column are data and are not interpreted.

A name pattern such as `(?P<year>\\d{4})-(?P<author>\\w+)` is a regular expression in the syntax of
RE2, which searches a name in time linear in its length. In RE2, `\\w` and `\\d` match only ASCII
characters; `\\pL` matches any letter.

pyarrow is imported inside the functions that need it, so that a template can be checked without it.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preprocess.errors import FolioError, MisuseError, shorten

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TEMPLATE_CHARACTERS = 10_000
MAX_PATTERN_CHARACTERS = 1_000
NAME_FIELDS = ("author", "city", "year", "lang", "group", "split")  # metadata that a file name can contain

COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Template:
    """A parsed template: literals[0], fields[0], literals[1], fields[1], …, literals[-1]."""

    literals: tuple[str, ...]  # one more than fields
    fields: tuple[str, ...]  # column names

    def __str__(self) -> str:
        first, *others = map(_escape, self.literals)
        return first + "".join(f"{{{name}}}{literal}" for name, literal in zip(self.fields, others, strict=True))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template joins, each once, in order of appearance."""
        return tuple(dict.fromkeys(self.fields))

    def join(self, columns: Mapping[str, pa.Array]) -> pa.LargeStringArray:
        """Return the text of each row, (R,); null if a column of the template is null in that row.

        Raises MisuseError if a column is missing or has a type that is not converted to text, such
        as a list.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = {name: _get_text_column(columns, name) for name in self.columns}
        parts = [pa.scalar(self.literals[0], pa.large_string())]
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            parts += [texts[name], pa.scalar(literal, pa.large_string())]
        return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()), null_handling="emit_null")


@functools.lru_cache(maxsize=4)
def parse_template(text: str) -> Template:
    """Parse a template.

    Raises MisuseError if a field is anything but the name of a column, such as `{title}` or
    `{meta.title}`. Positional fields, indexes, conversions and format specifications are not allowed.
    """
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise MisuseError(f"template must have at most {MAX_TEMPLATE_CHARACTERS:,} characters, got {len(text):,}")
    literals, fields = [""], []
    position = 0  # in `text`, of the next part
    error = None
    try:
        for literal, name, _, _ in string.Formatter().parse(text):
            literals[-1] += literal
            position += len(_escape(literal))
            if name is None:
                continue
            field = f"{{{name}}}"
            if not (COLUMN_NAME.fullmatch(name) and text.startswith(field, position)):
                error = "not a plain field"
                break
            fields.append(name)
            literals.append("")
            position += len(field)
    except ValueError as e:
        error = str(e)
    if error is not None:
        end = text.find("}", position) + 1 or len(text)
        raise MisuseError(
            f"template: '{shorten(text[position:end])}' at character {position + 1:,} ({error}); expected {{name}} "
            "with the name of a column, such as {title} or {meta.title}, or {{ and }} for braces"
        )
    if not fields:
        raise MisuseError(f"template '{shorten(text)}' contains no column; add at least one, such as {{text}}")
    if surrogate := SURROGATE.search(text):
        raise MisuseError(
            f"template: half of a surrogate pair, {surrogate[0]!r}, at character {surrogate.start() + 1:,}; "
            "write the whole character"
        )
    return Template(tuple(literals), tuple(fields))


def _escape(literal: str) -> str:
    return literal.replace("{", "{{").replace("}", "}}")


def _get_text_column(columns: Mapping[str, pa.Array], name: str) -> pa.LargeStringArray:
    """Return the column `name` converted to text."""
    from preprocess.recipes.columns import cast_to_text, get_kind

    if name not in columns:
        known = ", ".join(shorten(n) for n in list(columns)[:20])
        raise MisuseError(f"template: no column is called {shorten(name)}; the table has {known or 'no columns'}")
    if get_kind(columns[name].type) == "other":
        raise MisuseError(
            f"template: column {shorten(name)} is of type {shorten(str(columns[name].type))}; only text, numbers, "
            "booleans and dates can be joined"
        )
    return cast_to_text(columns[name])


@dataclass(frozen=True)
class NamePattern:
    """A regular expression that RE2 accepts, and the metadata fields that its groups find."""

    pattern: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return self.pattern

    def extract(self, names: list[str]) -> list[dict[str, str | None]]:
        """Return the fields of the first match in each of `names`, relative paths with `/`.

        A match may begin anywhere in a name. The dict is empty if the pattern does not match. A
        field is None if its group matched nothing. Raises FolioError if a name is not UTF-8.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        for name in names:
            if SURROGATE.search(name):
                raise FolioError(
                    f"the file name '{shorten(name)}' is not UTF-8, so name_pattern cannot be matched; rename the file"
                )
        matches = pc.extract_regex(pa.array(names, pa.string()), self.pattern).to_pylist()
        return [
            {} if groups is None else {field: value or None for field, value in groups.items()} for groups in matches
        ]


def parse_name_pattern(text: str) -> NamePattern:
    """Parse a pattern for file names.

    Raises MisuseError if RE2 does not accept it, if it has no named group, or if a group has a name
    that is not in NAME_FIELDS or that another group has.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(text) > MAX_PATTERN_CHARACTERS:
        raise MisuseError(f"name_pattern must have at most {MAX_PATTERN_CHARACTERS:,} characters, got {len(text):,}")
    prefix = f"name_pattern '{shorten(text)}'"
    try:
        groups = pc.extract_regex(pa.array([], pa.string()), text).type
    except pa.ArrowInvalid as error:
        raise MisuseError(f"{prefix}: {_explain_re2_error(str(error))}") from None
    except UnicodeEncodeError:
        raise MisuseError(f"{prefix}: half of a surrogate pair; write the whole character") from None
    fields = tuple(groups.field(i).name for i in range(groups.num_fields))
    if not fields:
        raise MisuseError(f"{prefix}: no named group; add at least one, such as (?P<year>\\d{{4}})")
    for field in fields:
        if field not in NAME_FIELDS:
            raise MisuseError(f"{prefix}: a group named {shorten(field)}; expected one of {', '.join(NAME_FIELDS)}")
        if fields.count(field) > 1:
            raise MisuseError(f"{prefix}: two groups named {field}; use each name once")
    return NamePattern(text, fields)


def _explain_re2_error(reason: str) -> str:
    if "unnamed groups" in reason:
        return "a group without a name; write (?:…) for a group that captures nothing, or a name as in (?P<year>…)"
    reason = shorten(reason.removeprefix("Invalid regular expression: "))
    return f"{reason}; expected a regular expression of RE2, which has no look-around and no back-references"
