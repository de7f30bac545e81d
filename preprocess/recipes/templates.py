"""Two small languages by which a recipe makes fields out of what a file gives: templates, and patterns of file names.

A template, `"Q: {query}\\n\\nA: {answer}"`, joins columns into one text. What stands in a column is data: braces in it stay as
they are. A pattern, `(?P<year>\\d{4})-(?P<author>\\w+)`, finds fields in the names of files. Neither is evaluated as Python, and
patterns are RE2's: their time is linear in the name. In RE2 `\\w` and `\\d` are ASCII; `\\pL` is any letter.

Arrow is loaded only to join and to match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from preprocess.errors import FolioError, MisuseError, shown

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PATTERN_CHARACTERS = 1_000
NAME_FIELDS = ("author", "city", "year", "lang", "group", "split")  # what the name of a file may say of its documents

PIECE = re.compile(r"(?P<literal>[^{}]+)|(?P<brace>\{\{|\}\})|\{(?P<column>[A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Template:
    """A parsed template: the text around the columns, and the columns between: one literal more than columns."""

    literals: tuple[str, ...]
    slots: tuple[str, ...]

    def __str__(self) -> str:
        escaped = [literal.replace("{", "{{").replace("}", "}}") for literal in self.literals]
        return escaped[0] + "".join(
            f"{{{name}}}{literal}" for name, literal in zip(self.slots, escaped[1:], strict=True)
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it joins, each once, in the order they appear."""
        return tuple(dict.fromkeys(self.slots))

    def join(self, columns: Mapping[str, pa.Array]) -> pa.LargeStringArray:
        """One text a row; null where a column of the template is. Raises MisuseError for a column missing or of lists and the like."""
        import pyarrow as pa
        import pyarrow.compute as pc

        texts = {name: _as_text(columns, name) for name in self.columns}
        parts = [pa.scalar(self.literals[0], pa.large_string())]
        for name, literal in zip(self.slots, self.literals[1:], strict=True):
            parts += [texts[name], pa.scalar(literal, pa.large_string())]
        return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()), null_handling="emit_null")


def parse_template(text: str) -> Template:
    """`text` as a template. Raises MisuseError that names the part which is neither text nor a plain {column}."""
    literals, slots, place = [""], [], 0
    while place < len(text):
        match = PIECE.match(text, place)
        if match is None:
            _reject_part(text, place)
        if name := match["column"]:
            slots.append(name)
            literals.append("")
        else:
            literals[-1] += match["literal"] or match["brace"][0]
        place = match.end()
    if not slots:
        raise MisuseError(f"template '{shown(text)}' names no column; wanted one at least, such as {{text}}")
    if half := re.search(r"[\ud800-\udfff]", text):
        raise MisuseError(
            f"template: half of a surrogate pair, {half[0]!r}, at character {half.start() + 1:,}; wanted whole characters"
        )
    return Template(tuple(literals), tuple(slots))


@dataclass(frozen=True)
class NamePattern:
    """A pattern that RE2 has accepted, and the fields its groups name."""

    pattern: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return self.pattern

    def extract(self, names: list[str]) -> list[dict[str, str | None]]:
        """For each POSIX relative name the fields of its first match, anywhere in it; {} where nothing matches.

        A group that matched nothing is None. Raises FolioError for a name that is not UTF-8.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        for name in names:
            if re.search(r"[\ud800-\udfff]", name):
                raise FolioError(
                    f"the file name '{shown(name)}' is not UTF-8, and a pattern is to read it; rename the file"
                )
        found = pc.extract_regex(pa.array(names, pa.string()), self.pattern).to_pylist()
        return [{} if fields is None else {field: value or None for field, value in fields.items()} for fields in found]


def parse_name_pattern(text: str) -> NamePattern:
    """`text` as a pattern over file names. Raises MisuseError where RE2 refuses it or its groups are not fields."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(text) > MAX_PATTERN_CHARACTERS:
        raise MisuseError(f"a name pattern of {len(text):,} characters; wanted at most {MAX_PATTERN_CHARACTERS:,}")
    where = f"name pattern '{shown(text)}'"
    try:
        groups = pc.extract_regex(pa.array([], pa.string()), text).type
    except pa.ArrowInvalid as error:
        raise MisuseError(f"{where}: {_refusal(str(error))}") from None
    except UnicodeEncodeError:
        raise MisuseError(f"{where}: half of a surrogate pair; wanted whole characters") from None
    fields = tuple(groups.field(i).name for i in range(groups.num_fields))
    if not fields:
        raise MisuseError(f"{where}: no named group; wanted one at least, such as (?P<year>\\d{{4}})")
    for field in fields:
        if field not in NAME_FIELDS:
            raise MisuseError(f"{where}: a group named {shown(field)}; wanted {', '.join(NAME_FIELDS)}")
        if fields.count(field) > 1:
            raise MisuseError(f"{where}: two groups named {field}; wanted each field once")
    return NamePattern(text, fields)


def _refusal(reason: str) -> str:
    if "unnamed groups" in reason:
        return "a group without a name; wanted (?:…) where a group only groups, or (?P<year>…)"
    reason = shown(reason.removeprefix("Invalid regular expression: "))
    return f"{reason}; wanted a regular expression of RE2, which has no look-around and no back-references"


def _as_text(columns: Mapping[str, pa.Array], name: str) -> pa.LargeStringArray:
    from preprocess.recipes.columns import as_text, kind

    if name not in columns:
        known = ", ".join(shown(n) for n in list(columns)[:20])
        raise MisuseError(f"template: no column is called {shown(name)}; the table has {known or 'no columns'}")
    if kind(columns[name].type) == "other":
        got = f"column {shown(name)} holds {shown(str(columns[name].type))}"
        raise MisuseError(f"template: {got}; wanted text, numbers, true and false, which alone are joined")
    return as_text(columns[name])


def _reject_part(text: str, place: int) -> NoReturn:
    end = text.find("}", place + 1) if text[place] == "{" else place
    part = text[place : end + 1] if end >= 0 else text[place:]
    got = f"'{shown(part)}'" + ("" if end >= 0 else ", which never closes,")
    raise MisuseError(
        f"template: {got} at character {place + 1:,}; wanted {{name}} with the plain name of a column, or {{{{ and }}}} for braces"
    )
