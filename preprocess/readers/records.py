"""Types that all readers share: required columns, batches of records, and rejected records."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa

from preprocess.chats.messages import MESSAGE_KEYS, find_chat_columns
from preprocess.errors import MisuseError, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.open_input import open_stream
from preprocess.readers.reject_reasons import ReasonCounts, RejectReason
from preprocess.readers.utf8 import Buffer
from preprocess.recipes.row_filter import parse_condition
from preprocess.recipes.schema import COLUMN_SETTINGS, Recipe
from preprocess.recipes.templates import parse_template
from preprocess.recipes.text_encodings import suggest_encoding

# The counts of `Rejects` that a user should be warned about. The others follow from the recipe's settings.
WARNED_REASONS = ("malformed", "oversized", "invalid_utf8", "null_text", "unreadable_year", "wrong_quotes")
FLUSH_BYTES = 4 << 20  # of rejected records that are kept in memory
MAX_SAVED_BYTES = 1 << 20  # of one rejected record
MAX_SAVED_RECORDS = 10_000  # of a partition and a kind, except malformed ones, which are lost otherwise
HEAD_BYTES = 1 << 16  # from which the encoding of a file is guessed
CHAT_TEXT = "\0chat"  # the column of `Records` with the marked text of a chat; no column of a file has this name


@dataclass(frozen=True)
class RequiredColumns:
    """The columns that a recipe needs, by name, with the kind of their values.

    A kind is "text", "number", "boolean", "null", "mixed" or "exact number", as in preprocess.recipes.row_filter.
    """

    columns: dict[str, str]  # for the text and the metadata of a document
    where: dict[str, str]  # for the condition
    text_only: str | None  # the column that must hold text; in other columns numbers are formatted as text
    chat: tuple[str, ...] = ()  # from which a chat is made; each may also be one of `columns` and of `where`

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([*self.chat, *self.columns, *self.where]))

    @property
    def of_documents(self) -> list[str]:
        """The columns from which documents are made, i.e. those that are not only for the condition."""
        return list(dict.fromkeys([*self.chat, *self.columns]))


def find_required_columns(recipe: Recipe) -> RequiredColumns:
    """Return the columns that `recipe` needs from a table."""
    metadata = [getattr(recipe, setting) for setting in COLUMN_SETTINGS if setting != "text_column"]
    chat = recipe.list_chat_columns()
    texts = () if chat else find_text_columns(recipe)
    text_only = recipe.text_column if recipe.template is None and not chat else None
    return _make_required_columns(chat, (*texts, *metadata), recipe.where, text_only)


@functools.lru_cache(maxsize=4)  # of these settings: hashing a whole recipe takes longer than reading a small file
def _make_required_columns(
    chat: tuple[str, ...], names: tuple[str | None, ...], where: str | None, text_only: str | None
) -> RequiredColumns:
    kinds = parse_condition(where).kinds if where is not None else {}
    return RequiredColumns({name: "text" for name in names if name is not None}, kinds, text_only, chat)


def find_text_columns(recipe: Recipe) -> tuple[str, ...]:
    """Return the columns from which the text of a document is made, and which every file must have.

    The second of three chat columns is optional.
    """
    if chat := recipe.list_chat_columns():
        return (chat[0], chat[-1]) if len(chat) > 1 else chat
    return parse_template(recipe.template).columns if recipe.template is not None else (recipe.text_column,)


class MissingColumnError(MisuseError):
    """A table lacks the required column `column`; it has the columns `names`."""

    def __init__(self, message: str, *, column: str, names: list[str]) -> None:
        super().__init__(message)
        self.column, self.names = column, names


def check_columns(input_file: InputFile, required: RequiredColumns, names: list[str]) -> None:
    """Raise MisuseError if a required column is missing from `names`, the columns of `input_file`."""
    for name in required.names:
        if name not in names:
            shown = ", ".join(map(shorten, names[:20])) + (" …" if len(names) > 20 else "")
            flags = "--text-column, --template, --author-column or similar" if name in required.columns else "--where"
            if any({*keys} <= {*names} for keys in MESSAGE_KEYS):
                flags += ', or write the messages of each chat as one record, {"messages": […]}, if these are messages'
            if name in required.chat:
                flags = "--chat-columns"
            elif chat := find_chat_columns(names):
                flags += f", or pass --chat-columns {','.join(chat)} to read chats"
            raise MissingColumnError(
                f"{input_file.path} has no column {shorten(name)!r}, it has {shown or 'no columns'}; choose another "
                f"with {flags}",
                column=name,
                names=names,
            )


def raise_list(input_file: InputFile, column: str, name: str) -> NoReturn:
    """Raise MisuseError for a column of lists that the required column `name` is or leads into."""
    value = "its values are" if name == column else f"{shorten(name)!r} is"
    raise MisuseError(
        f"the column {shorten(column)!r} of {input_file.path} has a list in each row, so {value} not one text; make a "
        "row of each element (explode in pandas and polars, unnest in DuckDB), or join the texts of each list"
    )


def format_utf8_error(input_file: InputFile, location: str, byte: int, reason: str) -> str:
    """Return the error message for bytes that are not UTF-8. `location` is like "at offset 5"."""
    if input_file.encoding:
        return (
            f"{input_file.path} is not valid {input_file.encoding.upper()} {location}; choose another with --encoding, "
            "or pass --invalid-utf8 replace or skip"
        )
    return (
        f"{input_file.path} is not UTF-8: byte 0x{byte:02x} {location} ({reason}); "
        f"{advise_about_encoding(input_file)}, or pass --invalid-utf8 replace or skip"
    )


def advise_about_encoding(input_file: InputFile) -> str:
    """Return what to do about a file that is not UTF-8, with its encoding if its first bytes show it."""
    with open_stream(input_file) as stream:
        return f"pass the encoding of the file, {suggest_encoding(stream.read(HEAD_BYTES))}"


class RowError(NamedTuple):
    """Why a row of a table is rejected."""

    reason: str
    record: bytes  # its values, for the list of rejects


@dataclass
class Records:
    """Consecutive records of one span, as columns of R values."""

    columns: dict[str, pa.Array]  # by name; strings, or bytes that are not yet known to be UTF-8
    first: int  # index of the first record within the span
    where: dict[str, pa.Array] = field(default_factory=dict)  # the columns that the condition reads
    offsets: np.ndarray | None = (
        None  # (R,) int64, byte offset of each record in the file; not for CSV, Parquet and Arrow
    )
    row_numbers: np.ndarray | None = None  # (R,) int64, of each record in the file, for messages; only tables
    errors: dict[int, RowError] = field(default_factory=dict)  # of rejected records, by index
    part: int = 0  # 0: whole records; n: the n-th part of one record that is too long, from 1
    # Only if the records of several files were joined: (R,) int64 each, the index of each record's file in the list of
    # these files, and its own index in the file. `first` is 0.
    files: np.ndarray | None = None
    positions: np.ndarray | None = None

    @property
    def num_records(self) -> int:
        return len(next(iter(self.columns.values())))

    def count_by_file(self, num_files: int) -> list[int]:
        """Return the number of records of each of the files whose records were joined."""
        assert self.files is not None
        counts: list[int] = np.bincount(self.files, minlength=num_files).tolist()
        return counts

    def describe_place(self, index: int) -> str:
        """Return where record `index` is in its file, for lists of rejects: "byte 1200" or "row 7"."""
        if self.offsets is not None:
            return f"byte {self.offsets[index]}"
        if self.row_numbers is not None:
            return f"row {self.row_numbers[index]}"
        return f"record {self.first + index}"

    def describe_record(self, index: int) -> str:
        """Return where record `index` is in its file, for messages: "the record at byte 1,200" or "row 7"."""
        if self.offsets is not None:
            return f"the record at byte {self.offsets[index]:,}"
        if self.row_numbers is not None:
            return f"row {self.row_numbers[index]:,}"
        return f"record {self.first + index:,}"


class Rejects:
    """The numbers of records that a partition drops or changes, by reason, and the records to be saved."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the JSONL file that rejected records are appended to; None to save none.

        The file is created when the first record is written.
        """
        self.counts: Counter[str] = Counter()
        self.num_positions = 0  # documents of the current span so far, including those that are dropped
        self.finished_spans: list[tuple[int, int]] = []  # of each span: input file number, num_positions
        self.reasons = ReasonCounts()
        self.first_unnumbered: RejectReason | None = None  # the first record that is left out without a position
        self._path = path
        self._num_saved: Counter[str] = Counter()  # by kind
        self._lines: list[str] = []
        self._num_bytes = 0  # of `_lines`

    def finish_span(self, file_number: int) -> None:
        """Store `num_positions` of the current span, a span of input file `file_number`, and reset it to 0."""
        self.finished_spans.append((file_number, self.num_positions))
        self.num_positions = 0

    def reject(self, name: str, location: str, reason: str, record: Buffer) -> None:
        """Count a malformed record of the input file `name`, and save its first MAX_SAVED_BYTES.

        Invalid UTF-8 is escaped.
        """
        self.add(RejectReason("malformed", reason, 1, name, location), record)

    def add(self, found: RejectReason, record: Buffer = b"", *, has_position: bool = False) -> None:
        """Count records that are dropped or changed, and save the place of the first, with its text.

        `has_position`: the records are numbered like the others. Otherwise the next record gets the
        position that the first of them would have.
        """
        self.count(found)
        if not has_position and self.first_unnumbered is None:
            self.first_unnumbered = found
        num_saved = self._num_saved[found.kind]
        if num_saved < MAX_SAVED_RECORDS or found.kind == "malformed":
            self._num_saved[found.kind] += 1
            entry = {
                "source": found.source,
                "place": found.place,
                "kind": found.kind,
                "reason": found.reason,
                "record": bytes(record[:MAX_SAVED_BYTES]).decode("utf-8", "backslashreplace"),
            }
            self._lines.append(json.dumps(entry) + "\n")
            self._num_bytes += len(self._lines[-1])
        if self._num_bytes >= FLUSH_BYTES:
            self.flush()

    def count_unused(self, kind: str) -> int:
        """Return how many more records of `kind` are saved."""
        return max(MAX_SAVED_RECORDS - self._num_saved[kind], 0)

    def count(self, found: RejectReason) -> None:
        """Count records that the recipe drops, so that they are not saved."""
        if found.num_records:
            self.counts[found.kind] += found.num_records
            self.reasons.add(found)

    def merge(self, other: Rejects) -> None:
        """Add the counts and reasons of `other`, whose records come after all others."""
        self.counts.update(other.counts)
        self.first_unnumbered = self.first_unnumbered or other.first_unnumbered
        for reason in other.reasons.as_list():
            self.reasons.add(reason)

    def flush(self) -> None:
        """Append the saved records that are in memory to the file."""
        if self._lines and self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.writelines(self._lines)
        self._lines.clear()
        self._num_bytes = 0


def format_counts(counts: Mapping[str, int]) -> list[str]:
    """Return each of `counts` as text, such as `1,234 null text`."""
    return [f"{n:,} {reason.replace('_', ' ')}" for reason, n in counts.items()]
