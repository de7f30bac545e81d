"""What every reader gives: records as columns, before anything is made of them."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocess.errors import MisuseError
from preprocess.inputs.input_files import InputFile
from preprocess.recipes.row_filter import parse_condition
from preprocess.recipes.schema import COLUMN_SETTINGS, Recipe
from preprocess.recipes.templates import parse_template

# What a corpus may not have meant to lose, of all that `Rejects` counts.
UNMEANT = ("malformed", "oversized", "invalid_utf8", "null_text", "unreadable_year")


@dataclass(frozen=True)
class Needed:
    """Which columns a recipe asks a table for, and as what: "text", "number", "boolean", "null" or "mixed"."""

    columns: dict[str, str]  # for the document and its metadata
    where: dict[str, str]  # for the condition
    strict: str | None  # the column whose values must be text; numbers in the others are spelled out

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*self.columns, *self.where]))


@functools.lru_cache(maxsize=4)
def needed_columns(recipe: Recipe) -> Needed:
    """What `recipe` needs of a table."""
    named = [getattr(recipe, setting) for setting in COLUMN_SETTINGS[1:]]
    texts = parse_template(recipe.template).columns if recipe.template is not None else (recipe.text_column,)
    kinds = parse_condition(recipe.where).kinds if recipe.where is not None else {}
    strict = recipe.text_column if recipe.template is None else None
    return Needed({name: "text" for name in (*texts, *named) if name is not None}, kinds, strict)


def explain_utf8(path: str, where: str, byte: int, reason: str) -> str:
    """The line for bytes that are no UTF-8."""
    return (
        f"{path} is not UTF-8: byte 0x{byte:02x} {where} ({reason}); convert it, as `iconv -f WINDOWS-1251 -t UTF-8` does for one old "
        "character set, or pass --invalid-utf8 replace or skip"
    )


def check_columns(source: InputFile, needed: Needed, there: list[str]) -> None:
    """Raise MisuseError where the table `source`, whose columns are `there`, lacks one that is needed."""
    for name in needed.names:
        if name not in there:
            shown = ", ".join(there[:20]) + (" …" if len(there) > 20 else "")
            setting = "--text-column, --template" if name in needed.columns else "--where"
            raise MisuseError(
                f"{source.path} has no column {name!r}, it has {shown or 'none'}; name another with {setting} or the like"
            )


@dataclass
class Records:
    """Consecutive records of one span."""

    columns: dict[str, pa.Array]  # by column name; text may be strings or bytes, and is not yet known to be UTF-8
    first: int  # number of the first of them within the span
    where: dict[str, pa.Array] = field(default_factory=dict)  # what the condition looks at
    offsets: np.ndarray | None = None  # (R,) where each begins in the file, in bytes, where the format has such places

    @property
    def num_records(self) -> int:
        return len(next(iter(self.columns.values())))


class Rejects:
    """What reading a partition left out, counted by reason; records that cannot be read are kept aside, so that nothing is lost."""

    def __init__(self, path: Path | None) -> None:
        """`path`: where to keep them, a file of JSON lines that appears with the first; None for nowhere."""
        self.counts: Counter[str] = Counter()
        self.num_positions = (
            0  # how many numbers the documents of the span have had so far, those that were dropped among them
        )
        self._path = path
        self._lines: list[str] = []

    def refuse(self, source: str, place: str, reason: str, record: bytes) -> None:
        """Keep a malformed record: its file, where in it, what is wrong, and its bytes, with those that are no UTF-8 escaped."""
        self.counts["malformed"] += 1
        entry = {
            "source": source,
            "place": place,
            "reason": reason,
            "record": record.decode("utf-8", "backslashreplace"),
        }
        self._lines.append(json.dumps(entry) + "\n")
        if len(self._lines) >= 1000:
            self.flush()

    def flush(self) -> None:
        """Write what has come together."""
        if self._lines and self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(self._lines)
        self._lines.clear()


def format_counts(counts: Mapping[str, int]) -> list[str]:
    """Each of `counts` as `1,234 null text`."""
    return [f"{n:,} {reason.replace('_', ' ')}" for reason, n in counts.items()]
