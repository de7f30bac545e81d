"""Find the line of a place that is known as an offset in bytes, for messages."""

from __future__ import annotations

import re
from collections.abc import Sequence

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.open_input import open_stream

BYTE = re.compile(r"byte ([0-9]+)")
MAX_BYTES = 64 << 20  # of a file that are read to count its lines
BLOCK_BYTES = 1 << 20


class Locator:
    """Describes places in input files, which are given by their names."""

    def __init__(self, input_files: Sequence[InputFile]) -> None:
        self._input_files = input_files

    def __call__(self, source: str, place: str) -> str:
        """Return `place` with the number of the line, if it is a byte near the start of the file."""
        match = BYTE.fullmatch(place)
        if match is None or int(match[1]) > MAX_BYTES:
            return place
        try:
            input_file = next(file for file in self._input_files if source in (file.name, file.path))
            return f"line {_count_lines(input_file, int(match[1])) + 1:,} ({place})"
        except (StopIteration, FolioError, OSError):  # the file cannot be read again: its offset must do
            return place


def _count_lines(input_file: InputFile, offset: int) -> int:
    """Return the number of line feeds in the first `offset` bytes."""
    num_lines = 0
    with open_stream(input_file) as stream:
        while offset > 0 and (data := stream.read(min(offset, BLOCK_BYTES))):
            data = data[:offset]
            num_lines += data.count(b"\n")
            offset -= len(data)
    return num_lines
