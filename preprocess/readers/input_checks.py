"""Check the heads of input files before their records are read.

Parquet and Arrow files are examined in a child process, which examines several files: all those of
a build, or the next ones of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.readers.examiner import examine_files
from preprocess.readers.records import find_required_columns
from preprocess.recipes.schema import PAGE_FORMATS, Recipe

if TYPE_CHECKING:
    from preprocess.readers.json_columns import JsonColumnChecker

MAX_FILES_AHEAD = 256
MAX_ARROW_BYTES_AHEAD = 256 << 20  # of Arrow files in a group; a compressed file is examined as a whole
# The formats that are examined: their names in messages, and what is probably wrong with a file that is refused.
EXAMINED = {
    "parquet": ("Parquet", "it is damaged, copy it again"),
    "arrow": ("Arrow IPC", "it is damaged or has too large record batches; copy it again, or write smaller batches"),
}


class InputChecker:
    """A check of the heads of input files.

    Parquet and Arrow files are examined in groups, because starting a process is slow. Each group is
    twice as large as the one before, up to MAX_FILES_AHEAD files or MAX_ARROW_BYTES_AHEAD, so that
    the first files of a stream are available soon.
    """

    def __init__(self, input_files: Sequence[InputFile], recipe: Recipe) -> None:
        self._input_files, self._recipe = input_files, recipe
        self._reasons: dict[str, str | None] = {}  # of examined files, by path: why one must not be opened
        self._num_files, self._max_arrow_bytes = 1, MAX_ARROW_BYTES_AHEAD  # to be examined next
        self._json_checker: JsonColumnChecker | None = None
        self.empty_files: set[str] = set()  # paths of CSV files without a header, found by `check`
        # The first JSON or CSV file, and its columns: those of the header or of the first record.
        self.first_columns: tuple[InputFile, list[str]] | None = None

    def check_all(self) -> None:
        """Check all files, with one group of files to be examined. Raises the errors of `check`."""
        self._num_files = len(self._input_files)
        self._max_arrow_bytes = sum(file.size_bytes for file in self._input_files)
        for input_file in self._input_files:
            self.check(input_file)

    def check(self, input_file: InputFile) -> None:
        """Check that the head of a file is readable and has the columns that the recipe needs.

        The columns of Parquet and Arrow files are checked when their row groups or record batches
        are counted (parquet.py, arrow.py). Text files have no columns. Raises MisuseError if a
        column is missing or a library that reads the file is not installed, FolioError for a CSV
        file whose header cannot be read or for a damaged Parquet or Arrow file.
        """
        # Each reader imports the library of its format, so import only the reader that is needed.
        if input_file.format in EXAMINED:
            self._check_by_examiner(input_file)
        elif input_file.format == "jsonl":
            from preprocess.readers.json_columns import JsonColumnChecker

            self._json_checker = self._json_checker or JsonColumnChecker(self._input_files, self._recipe)
            self._store_columns(input_file, self._json_checker.check(input_file))
        elif input_file.format == "csv":
            from preprocess.readers.csv import check_csv

            names = check_csv(input_file, self._recipe)
            if names is None:
                self.empty_files.add(input_file.path)
            self._store_columns(input_file, names or [])
        elif input_file.format in PAGE_FORMATS:
            from preprocess.readers.html_text import check_installed

            modules = ("resiliparse", "fastwarc") if input_file.format == "warc" else ("resiliparse",)
            check_installed(input_file.path, input_file.format, *modules)

    def _store_columns(self, input_file: InputFile, names: list[str]) -> None:
        if self.first_columns is None and not input_file.archive:
            self.first_columns = input_file, names

    def _check_by_examiner(self, input_file: InputFile) -> None:
        if input_file.path not in self._reasons:
            files = self._list_next(input_file.number)
            reasons = examine_files(files, find_required_columns(self._recipe).names)
            self._reasons |= zip((path for path, _ in files), reasons, strict=False)  # of `input_file` at least
            self._num_files = min(2 * self._num_files, MAX_FILES_AHEAD)
        if reason := self._reasons[input_file.path]:
            name, advice = EXAMINED[input_file.format]
            raise FolioError(f"{input_file.path} cannot be read as {name} ({reason}); {advice}")

    def _list_next(self, number: int) -> list[tuple[str, str]]:
        """Return the path and the format of the files to be examined next, from input file `number` on."""
        files: list[tuple[str, str]] = []
        arrow_bytes = 0
        for file in self._input_files[number:]:
            if file.format not in EXAMINED or file.path in self._reasons or not file.disk.is_copied:
                continue
            arrow_bytes += file.size_bytes if file.format == "arrow" else 0
            if len(files) == self._num_files or (files and arrow_bytes > self._max_arrow_bytes):
                break
            files.append((file.path, file.format))
        return files
