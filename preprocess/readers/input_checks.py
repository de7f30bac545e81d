"""Check the heads of input files before their records are read.

The metadata of Parquet files is examined in a child process, which examines several files: all
those of a build, or the next ones of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.parquet_examiner import find_unreadable
from preprocess.readers.records import find_required_columns
from preprocess.recipes.schema import Recipe

if TYPE_CHECKING:
    from preprocess.readers.json_columns import JsonColumnChecker

MAX_FILES_AHEAD = 256


class InputChecker:
    """Checks input files. Those of Parquet are examined in groups, each twice as large as the one before."""

    def __init__(self, input_files: Sequence[InputFile], recipe: Recipe) -> None:
        self._input_files, self._recipe = input_files, recipe
        self._reasons: dict[str, str | None] = {}  # of Parquet files, by path: why one must not be opened
        self._num_files = 1  # to be examined next
        self._json_checker: JsonColumnChecker | None = None
        self.empty_files: set[str] = set()  # paths of CSV files without a header, found by `check`

    def check_all(self) -> None:
        """Check all files. Raises the errors of `check`."""
        self._num_files = len(self._input_files)
        for input_file in self._input_files:
            self.check(input_file)

    def check(self, input_file: InputFile) -> None:
        """Check that the head of a file is readable and has the columns that the recipe needs.

        The columns of Parquet files are checked when their row groups are listed (parquet.py). Text
        files have no columns. Raises MisuseError if a column is missing, FolioError for a CSV file
        whose header cannot be read or a damaged Parquet file. Raises MisuseError also if a library that
        reads the file is not installed.
        """
        # Each reader imports the library of its format, so import only the reader that is needed.
        if input_file.format == "parquet":
            self._check_parquet(input_file)
        elif input_file.format == "jsonl":
            from preprocess.readers.json_columns import JsonColumnChecker

            self._json_checker = self._json_checker or JsonColumnChecker(self._input_files, self._recipe)
            self._json_checker.check(input_file)
        elif input_file.format == "csv":
            from preprocess.readers.csv import check_csv

            if not check_csv(input_file, self._recipe):
                self.empty_files.add(input_file.path)
        elif input_file.format in ("html", "warc"):
            from preprocess.readers.html_text import check_installed

            modules = ("resiliparse", "fastwarc") if input_file.format == "warc" else ("resiliparse",)
            check_installed(input_file.path, input_file.format, *modules)

    def _check_parquet(self, input_file: InputFile) -> None:
        if input_file.path not in self._reasons:
            candidates = (file.path for file in self._input_files[input_file.number :] if file.format == "parquet")
            paths = [path for path in candidates if path not in self._reasons][: self._num_files]
            reasons = find_unreadable(paths, find_required_columns(self._recipe).names)
            self._reasons |= {path: reasons.get(path) for path in paths}
            self._num_files = min(2 * self._num_files, MAX_FILES_AHEAD)
        if reason := self._reasons[input_file.path]:
            raise FolioError(f"{input_file.path} cannot be read as Parquet ({reason}); it is damaged, copy it again")
