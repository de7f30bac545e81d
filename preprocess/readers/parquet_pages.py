"""The sizes of the pages of a Parquet column, from the page headers.

The problem: a column can be a million times larger in memory than in the file, because a page may
be compressed, and because equal values are stored once, in a dictionary. Arrow decodes a given
number of rows at a time; how many bytes these are is known only afterwards.

The idea: a column of a row group is stored as a sequence of pages of about 1 MB. Every page begins
with a header, which says how many values the page has, how they are encoded, and how large it is
after decompression. That is enough to bound the size of any number of consecutive rows before
anything is decompressed (`max_bytes_of_rows`), and to reject headers with impossible sizes.

The cost: one read of 512 bytes per page. Arrow does not expose page headers, so they are parsed
here. They are structs in Thrift's compact protocol:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from preprocess.errors import FolioError
from preprocess.readers.parquet_metadata import Chunk

MAGIC, SEARCH_BYTES = b"PAR1", 1 << 20  # MAGIC is at both ends of a file
HEADER_BYTES = 512  # read at first; a header is longer if it contains long values as statistics
MAX_HEADER_BYTES = 16 << 20  # Arrow's limit
MAX_DEPTH = 16  # of structs and lists
LARGE_PAGE_BYTES = 8 << 20
MAX_SKEW = 4  # how much larger than the average the values of a large page are expected to be

# Numbers in the Parquet format.
DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = range(4)
PLAIN_DICTIONARY, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 2, 7, 8
DICTIONARY_ENCODINGS = (PLAIN_DICTIONARY, RLE_DICTIONARY)
FIXED_SIZES = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


class Page(NamedTuple):
    """The header of one page."""

    type: int
    num_values: int
    encoding: int
    compressed_bytes: int
    uncompressed_bytes: int


class PageError(ValueError):
    """The pages of a file are damaged, or too large to be read."""


def reject_joined_files(parquet: Any, raw: BinaryIO, path: str) -> None:
    """Raise FolioError if `raw`, which `parquet` reads at `path`, is several files that were written one after another.

    The metadata of the last file would be applied to the bytes of the first one. A file has only its indexes
    between the last column and the metadata, so usually nothing is read here.
    """
    metadata, begin = parquet.metadata, len(MAGIC)
    for number in range(metadata.num_columns if metadata.num_row_groups else 0):
        column = metadata.row_group(metadata.num_row_groups - 1).column(number)
        first = min(filter(None, (column.data_page_offset, column.dictionary_page_offset)), default=0)
        begin = max(begin, first + column.total_compressed_size)
    num_left = raw.seek(0, os.SEEK_END) - 2 * len(MAGIC) - metadata.serialized_size - begin
    raw.seek(begin)
    last = b""
    while num_left > 0 and (data := raw.read(min(num_left, SEARCH_BYTES))):
        if 2 * MAGIC in last + data:
            raise FolioError(
                f"{path} consists of several Parquet files, one after another; use the single files in its place"
            )
        num_left, last = num_left - len(data), data[-2 * len(MAGIC) :]


@dataclass(frozen=True)
class RowSizes:
    """Upper bounds for the decoded size of consecutive blocks of rows, B blocks in all."""

    num_rows: np.ndarray  # (B,) int64, of each block
    block_bytes: np.ndarray  # (B,) float64, at most this many bytes in the whole block …
    row_bytes: np.ndarray  # (B,) float64, … and at most this many in one row of it

    @classmethod
    def uniform(cls, num_rows: int, row_bytes: int) -> RowSizes:
        """Return one block of rows of the same size."""
        return cls(
            np.array([num_rows], np.int64), np.array([float(num_rows) * row_bytes]), np.array([float(row_bytes)])
        )

    @classmethod
    def measured(cls, sizes: np.ndarray, block_rows: int) -> RowSizes:
        """Return blocks of `block_rows` rows, from the size of each row, (R,) int64."""
        starts = np.arange(0, len(sizes), block_rows)
        counts = np.diff(starts, append=len(sizes)).astype(np.int64)
        sizes = sizes.astype(np.float64)
        return cls(counts, np.add.reduceat(sizes, starts), np.maximum.reduceat(sizes, starts))

    @classmethod
    def concatenate(cls, parts: list[RowSizes]) -> RowSizes:
        """Return the blocks of all `parts`, one after the other."""
        return cls(
            np.concatenate([part.num_rows for part in parts]),
            np.concatenate([part.block_bytes for part in parts]),
            np.concatenate([part.row_bytes for part in parts]),
        )

    def after(self, num_rows: int) -> RowSizes:
        """Return the blocks after the first `num_rows` rows. A block must end there."""
        first = int(np.searchsorted(np.cumsum(self.num_rows), num_rows, side="right"))
        return RowSizes(self.num_rows[first:], self.block_bytes[first:], self.row_bytes[first:])

    def max_bytes_of_rows(self, num_rows: int) -> float:
        """Return an upper bound for the size of any `num_rows` consecutive rows."""
        if not len(self.num_rows):
            return 0.0
        blocks = np.minimum(np.minimum(self.num_rows, num_rows) * self.row_bytes, self.block_bytes)
        ends = np.cumsum(self.num_rows)
        totals = np.concatenate([[0.0], np.cumsum(blocks)])
        # The most blocks are touched if the rows begin with the last row of a block.
        last = np.minimum(np.searchsorted(ends, ends + num_rows - 2, side="right"), len(ends) - 1)
        return float((totals[last + 1] - totals[:-1]).max())


def read_page_headers(file: BinaryIO, chunk: Chunk, num_file_bytes: int) -> Iterator[Page]:
    """Yield the headers of the pages of `chunk`, up to the page with its last value.

    Raises PageError if a header is damaged.
    """
    offset, num_values = chunk.offset, 0
    while num_values < chunk.num_values:
        page, num_header_bytes = _read_page_header(file, offset)
        offset += num_header_bytes + page.compressed_bytes
        if min(page.num_values, page.compressed_bytes, page.uncompressed_bytes) < 0 or offset > num_file_bytes:
            raise PageError(f"a page of column {chunk.name!r} has an impossible size")
        if page.type in (DATA_PAGE, DATA_PAGE_V2):
            num_values += page.num_values
        yield page
    if num_values > chunk.num_values:
        raise PageError(f"the pages of column {chunk.name!r} have more values than the column")


def compute_row_sizes(
    chunk: Chunk, pages: list[Page], num_rows: int, longest_in_dictionary: int | None = None
) -> RowSizes:
    """Return upper bounds for the sizes of the rows, with one block per data page.

    The rows of a column of lists are assumed to have equally many values each. `longest_in_dictionary`:
    the size of the longest value in the dictionary, if it is known; otherwise one value may be all of it.
    """
    data_pages = [page for page in pages if page.type in (DATA_PAGE, DATA_PAGE_V2) and page.num_values]
    counts = np.array([page.num_values for page in data_pages], np.int64)
    sizes = np.array([page.uncompressed_bytes for page in data_pages], np.float64)
    block_bytes: np.ndarray = sizes.copy()
    row_bytes: np.ndarray = sizes.copy()
    is_large = sizes > LARGE_PAGE_BYTES
    # The page is in memory as a whole, so values that are larger than expected take at most as much memory again.
    row_bytes[is_large] = np.minimum(sizes, MAX_SKEW * sizes / np.maximum(counts, 1))[is_large]
    dictionary = find_dictionary(pages)
    dictionary_bytes = dictionary.uncompressed_bytes if dictionary is not None else 0
    if longest_in_dictionary is not None:
        dictionary_bytes = longest_in_dictionary
    for i, page in enumerate(data_pages):
        if page.encoding in DICTIONARY_ENCODINGS:
            row_bytes[i] = dictionary_bytes
            block_bytes[i] = float(dictionary_bytes) * page.num_values
        elif page.encoding == DELTA_BYTE_ARRAY:  # a value may repeat all bytes of the one before
            row_bytes[i] = sizes[i]
            block_bytes[i] = sizes[i] * page.num_values
    if fixed_bytes := FIXED_SIZES.get(chunk.physical_type, chunk.value_bytes):
        row_bytes[:] = fixed_bytes
        block_bytes = counts * float(fixed_bytes)
    if chunk.is_repeated:
        scale = num_rows / max(int(counts.sum()), 1)
        counts = np.maximum(np.diff(np.round(np.cumsum(counts) * scale), prepend=0).astype(np.int64), 1)
        row_bytes = np.minimum(block_bytes, MAX_SKEW * block_bytes / counts)
    return RowSizes(counts, block_bytes, row_bytes)


def find_dictionary(pages: list[Page]) -> Page | None:
    """Return the largest dictionary page, if there is one."""
    dictionaries = [page for page in pages if page.type == DICTIONARY_PAGE]
    return max(dictionaries, key=lambda page: page.uncompressed_bytes, default=None)


def count_dictionary_values(pages: list[Page]) -> int:
    """Return the number of values before the first data page that does not use the dictionary."""
    num_values = 0
    for page in pages:
        if page.type in (DATA_PAGE, DATA_PAGE_V2):
            if page.encoding not in DICTIONARY_ENCODINGS:
                break
            num_values += page.num_values
    return num_values


def _read_page_header(file: BinaryIO, offset: int) -> tuple[Page, int]:
    """Return the header at `offset` and its size in bytes."""
    num_bytes = HEADER_BYTES
    while True:
        file.seek(offset)
        data = file.read(num_bytes) or b""
        reader = _CompactReader(data)
        try:
            return _parse_page_header(reader.read_struct()), reader.position
        except IndexError:  # the header is longer than `data`
            if len(data) < num_bytes or num_bytes >= MAX_HEADER_BYTES:
                raise PageError(f"the page header at byte {offset:,} is not complete") from None
            num_bytes *= 8
        except (KeyError, TypeError, ValueError):
            raise PageError(f"there is no page header at byte {offset:,}") from None


def _parse_page_header(header: dict[int, Any]) -> Page:
    """Return the page of a parsed `PageHeader`. The keys are the field numbers of the Parquet format."""
    type_, uncompressed_bytes, compressed_bytes = header[1], header[2], header[3]
    if type_ == INDEX_PAGE:
        return Page(type_, 0, 0, compressed_bytes, uncompressed_bytes)
    fields = header[{DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}[type_]]
    encoding = fields[4 if type_ == DATA_PAGE_V2 else 2]
    page = Page(type_, fields[1], encoding, compressed_bytes, uncompressed_bytes)
    if not all(type(value) is int for value in page):
        raise TypeError("a number has another type")
    return page


class _CompactReader:
    """Reads structs of Thrift's compact protocol. Raises IndexError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the values of a struct by field number. Text and lists have the value None."""
        if depth > MAX_DEPTH:
            raise ValueError("structs are nested too deeply")
        values: dict[int, Any] = {}
        number = 0
        while head := self._read_byte():
            number = number + (head >> 4) if head >> 4 else self._read_integer()
            values[number] = self._read_value(head & 15, depth)
        return values

    def _read_value(self, type_: int, depth: int) -> Any:
        if type_ in (1, 2):  # a field that is true or false has no further bytes
            return type_ == 1
        if type_ in (4, 5, 6):
            return self._read_integer()
        if type_ == 12:
            return self.read_struct(depth + 1)
        if type_ == 8:
            self._skip(self._read_varint())
        elif type_ in (9, 10):
            self._skip_list(depth)
        elif type_ in (3, 7):
            self._skip(1 if type_ == 3 else 8)
        else:
            raise ValueError("unknown type")
        return None

    def _skip_list(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError("lists are nested too deeply")
        head = self._read_byte()
        size = self._read_varint() if head >> 4 == 15 else head >> 4
        for _ in range(size):
            if head & 15 in (1, 2):
                self._skip(1)
            else:
                self._read_value(head & 15, depth + 1)

    def _skip(self, num_bytes: int) -> None:
        self.position += num_bytes
        if self.position > len(self._data):
            raise IndexError

    def _read_byte(self) -> int:
        byte = self._data[self.position]
        self.position += 1
        return byte

    def _read_varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._read_byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("an integer has more than 64 bits")

    def _read_integer(self) -> int:
        value = self._read_varint()
        return (value >> 1) ^ -(value & 1)  # zigzag
