"""completions.jsonl: the texts that a run has written between its steps, one JSON object for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocess.shards.files import JsonObject, open_atomic, open_json_lines
from train.core.cli import add_path_to_errors
from train.run.metrics import parse_step

COMPLETIONS_FILE = "completions.jsonl"
MAX_ROW_BYTES = 64 << 20  # a completion may have a million tokens
MAX_CHARACTERS = 5_000_000  # of the text of a row; each is at most the 12 bytes of two escapes


@dataclass(frozen=True, kw_only=True)
class CompletionRow:
    """A prompt with the text that the model continued it with, after `step` steps."""

    step: int
    text: str

    def encode(self) -> bytes:
        """Return the line of the row, with at most MAX_CHARACTERS of the text.

        Half of a surrogate pair, which is not a character, is written as an escape.
        """
        text = self.text.encode("utf-8", "backslashreplace").decode()[:MAX_CHARACTERS]
        return json.dumps({"step": self.step, "text": text}).encode() + b"\n"


def append_completion(out_dir: Path, row: CompletionRow) -> None:
    """Append a row to the completions.jsonl in `out_dir`. Raises OSError if the disk is full."""
    path = out_dir / COMPLETIONS_FILE
    with add_path_to_errors(path), open(path, "ab") as file:
        file.write(row.encode())


def drop_completions(out_dir: Path, *, last_step: int) -> None:
    """Remove the rows after `last_step`, and a last row that was not written completely."""
    path = out_dir / COMPLETIONS_FILE
    rows = open_completions(out_dir)
    if path.exists():
        with add_path_to_errors(path), open_atomic(path) as file:
            file.writelines(row.encode() for row in rows if row.step <= last_step)


def open_completions(out_dir: Path) -> Iterator[CompletionRow]:
    """Return an iterator over the rows, oldest first; without a file, there are none.

    An incomplete last line is dropped. The iterator raises FolioError if another line is not a row.
    """
    return open_json_lines(
        out_dir / COMPLETIONS_FILE,
        _parse_row,
        row_name="a completion",
        advice="delete the line, or start again with --restart",
        drop_bad_last_line=True,
        max_row_bytes=MAX_ROW_BYTES,
    )


def _parse_row(row: JsonObject) -> CompletionRow:
    """Return the row. Raises TypeError if it has no step or no text."""
    step = parse_step(row)
    if not isinstance(row.get("text"), str):
        raise TypeError("text is not a text")
    return CompletionRow(step=step, text=row["text"])
