"""metrics.jsonl: one JSON object per logged step and evaluation; see docs/training.md."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from preprocess.shards.files import JsonObject, open_atomic, open_json_lines
from train.core.cli import add_path_to_errors
from train.trackers.protocol import MetricsRow

METRICS_FILE = "metrics.jsonl"
MAX_STEP = 10**15
MAX_ROW_BYTES = 4 << 20  # a row has a value for each build of a mixture


class Metrics:
    """Appends rows to metrics.jsonl.

    Each row is written immediately, so that a crash does not lose it. If the file is deleted or
    replaced meanwhile, its rows can still be read from the open file, and `sync` writes them again.
    """

    def __init__(self, out_dir: Path, last_step: int, *, warn: Callable[[str], None]) -> None:
        """Open the file, and remove the rows after `last_step` from it.

        `warn` is called with one line if the file is deleted or replaced later.
        """
        self._path, self._warn = out_dir / METRICS_FILE, warn
        rows = open_rows(self._path)
        with add_path_to_errors(self._path), open_atomic(self._path) as file:
            file.writelines(_encode_row(row) for row in rows if row.step <= last_step)
        self._file = _open_to_append(self._path)

    def write(self, step: int, **values: float | None) -> None:
        """Append a row. Infinities and NaN, which JSON cannot represent, become null.

        Raises OSError if the disk is full.
        """
        finite = {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}
        line = memoryview(_encode_row(MetricsRow(step, finite)))
        with add_path_to_errors(self._path):
            while line:  # an unbuffered write may be partial; on a full disk the next one raises
                line = line[self._file.write(line) :]

    def sync(self) -> None:
        """Flush the file to the disk. Write it again if it was deleted or replaced."""
        if _is_same_file(self._file, self._path):
            os.fsync(self._file.fileno())
            return
        self._file.seek(0)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with add_path_to_errors(self._path), open_atomic(self._path) as file:
            shutil.copyfileobj(self._file, file)
        self._file.close()
        self._file = _open_to_append(self._path)
        self._warn(
            f"{self._path} was deleted or replaced while the run wrote to it; it is written again, with all rows"
        )

    def close(self) -> None:
        self._file.close()


def _open_to_append(path: Path) -> io.FileIO:
    """Open `path` for appending and reading, without a buffer.

    On a full disk, a file with a buffer would raise the error a second time when it is closed.
    """
    return open(path, "a+b", buffering=0)


def _is_same_file(file: io.FileIO, path: Path) -> bool:
    """Return whether `path` is still the name of the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _encode_row(row: MetricsRow) -> bytes:
    return json.dumps({"step": row.step, **row.values}, allow_nan=False).encode() + b"\n"


def open_rows(path: Path) -> Iterator[MetricsRow]:
    """Open the metrics.jsonl at `path`, and return an iterator over its rows; without a file, there are none.

    One row at a time is in memory, because the file of a long run has hundreds of megabytes. An incomplete
    last line is dropped. The iterator raises FolioError if another line is not a row.
    """
    return open_json_lines(
        path,
        _parse_row,
        row_name="a row of metrics",
        advice="delete the line, or start again with --restart",
        drop_bad_last_line=True,
        max_row_bytes=MAX_ROW_BYTES,
    )


def parse_step(row: JsonObject) -> int:
    """Return the step of a row. Raises TypeError if it has none."""
    step = row.get("step")
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        raise TypeError(f"step is not a whole number from 0 to {MAX_STEP:,}")
    return step


def _parse_row(row: JsonObject) -> MetricsRow:
    """Return the row. Raises TypeError if it has no step or a value that is not a number or null."""
    step = parse_step(row)
    if bad := [key for key, value in row.items() if type(value) not in (int, float, type(None))]:
        raise TypeError(f"{bad[0]} is not a number")
    return MetricsRow(step, {key: value for key, value in row.items() if key != "step"})
