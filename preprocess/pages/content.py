"""What every page consists of: facts, warnings and tables, as text and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preprocess.errors import hide_credentials, printable

Cell = str | int | float | None
MAX_CHARACTERS = 300  # of a text or a value


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. The cells of a row are text, whole numbers, fractions, or None if there is no value.

    The numbers of the columns `bars` are also drawn as bars. A row that has a text in the column `mark`
    is marked.
    """

    id: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    bars: tuple[int, ...] = ()
    mark: int | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The top of a page, and its tables."""

    title: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    tables: list[Table]


def clean_text(text: str) -> str:
    """Return the first MAX_CHARACTERS characters of a text, without logins, and with control characters escaped."""
    shown = printable(hide_credentials(str(text)[: 2 * MAX_CHARACTERS])[:MAX_CHARACTERS])
    return shown + ("…" if len(str(text)) > MAX_CHARACTERS else "")
