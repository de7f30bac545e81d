"""Read the web pages in WARC files, the archives of crawlers, and the texts in WET files.

A document is the main text of a response that is an HTML page, a response that is plain text, or
the text of a `conversion` record. Other records (requests, metadata, images, errors of servers) are
counted. fastwarc finds the records in the decompressed file, so memory holds one record.

If the file continues with something that is not a record, this is rejected, and the next bytes that
look like the beginning of a record are searched. A file that ends within a record ends with a
rejected record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from preprocess.errors import first_line
from preprocess.inputs.detect import HTML_START
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.open_input import read_blocks
from preprocess.readers.html import PageReader, get_default_codec, make_texts
from preprocess.readers.html_text import find_codec_of_page
from preprocess.readers.page_process import MAX_PAGE_BYTES, PageTooHard
from preprocess.readers.record_sizes import BATCH_BYTES, get_max_record_bytes, reject_long_record
from preprocess.readers.records import Records, Rejects
from preprocess.readers.reject_reasons import RejectReason
from preprocess.readers.utf8 import Buffer
from preprocess.recipes.schema import Recipe

Decoding = Literal["all", "none"]  # of the body of a response, from its Content-Encoding and Transfer-Encoding
BATCH_RECORDS = 1 << 14
SAVED_BYTES = 1 << 10  # of a rejected record
HTML_TYPES = ("text/html", "application/xhtml+xml")
RECORD_START = re.compile(rb"WARC/1\.[0-9]\r?\n")
READ_BYTES = 1 << 20
MAX_ENCODED_BYTES = 64_000_000  # of a response whose body is compressed or chunked: fastwarc copies it twice
MAX_HEAD_BYTES = 1 << 16  # of a response; fastwarc reads heads of up to 32 KiB
ENCODING_HEADERS = ("Content-Encoding", "Transfer-Encoding")
TAIL_BYTES = 1 << 18  # before the position of fastwarc, which reads 64 KiB ahead and headers of up to 32 KiB


def read_warc(input_file: InputFile, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the texts of a WARC file as records with the column `text`, and their offsets."""
    reader = _RecordReader(input_file, recipe, rejects)
    texts: list[Buffer] = []
    offsets: list[int] = []
    num_yielded = num_bytes = 0
    for record in _iter_records(input_file, rejects):
        text = reader.read(record)
        if text is None:
            continue
        texts.append(text)
        offsets.append(record.offset)
        num_bytes += len(text)
        del text  # it may be long, and the next one, too
        if num_bytes >= BATCH_BYTES or len(texts) >= BATCH_RECORDS:
            records = _make_records(texts, offsets, num_yielded)
            num_yielded += len(texts)
            texts, offsets, num_bytes = [], [], 0
            yield records
            del records
    if texts:
        yield _make_records(texts, offsets, num_yielded)


def _make_records(texts: list[Buffer], offsets: list[int], first: int) -> Records:
    return Records({"text": make_texts(texts)}, first, offsets=np.array(offsets, np.int64))


@dataclass
class _Record:
    """A record of a WARC file. Its block is read from `warc_record.reader`."""

    offset: int  # of its first byte in the decompressed file
    warc_record: Any

    @property
    def name(self) -> str:
        """The name for messages."""
        return f"the record at byte {self.offset:,}"

    @property
    def type(self) -> str:
        return self.warc_record.headers.get("WARC-Type") or ""

    def parse_content_length(self) -> int | None:
        """Return the number in the header, which fastwarc takes for 0 if it is missing or too large."""
        value = (self.warc_record.headers.get("Content-Length") or "").strip()
        return int(value) if re.fullmatch("[0-9]{1,18}", value) else None

    def read(self, num_bytes: int) -> bytearray:
        """Return the first `num_bytes` of the block, or all of it if it is shorter."""
        return _read_up_to(self.warc_record.reader, num_bytes)


def _read_up_to(reader: Any, num_bytes: int) -> bytearray:
    """Return the next bytes of a reader of fastwarc. In one call, it would need twice the memory."""
    data = bytearray()
    while len(data) < num_bytes and (part := reader.read(min(num_bytes - len(data), READ_BYTES))):
        data += part
    return data


class _RecordReader:
    """Returns the texts of records, and counts the other records."""

    def __init__(self, input_file: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects
        self._pages = PageReader(input_file, recipe, rejects)
        self._max_bytes = get_max_record_bytes(recipe)

    def read(self, record: _Record) -> Buffer | None:
        """Return the text of a record in UTF-8, or None if it has none or is left out."""
        content_length = record.warc_record.content_length
        is_response = record.type == "response" and record.warc_record.is_http
        block = bytearray()
        if content_length != record.parse_content_length():
            self._reject(record, "the record has no valid Content-Length", block)
        elif not is_response and record.type != "conversion":
            self._count_other(record, "not a response or a conversion")
        elif content_length > self._max_bytes:
            self._reject_long(record)
        elif len(block := record.read(content_length)) < content_length:
            self._reject(record, f"the record ends after {len(block)} of {content_length} bytes", block)
        elif is_response:
            return self._read_response(record, block)
        else:
            return self._decode(block, None, record)
        return None

    def _read_response(self, record: _Record, block: bytearray) -> Buffer | None:
        try:
            response = _parse_response(block, self._max_bytes)
        except PageTooHard as e:
            self._pages.reject(e, block, record.name, record.offset)
            return None
        if response.error:
            self._reject(record, response.error, block)
        elif not response.has_text:
            self._count_other(record, "neither an HTML page nor plain text, or not successful")
        else:
            codec = find_codec_of_page(response.body, response.charset) or get_default_codec(self._recipe)
            if not response.is_html:
                return self._decode(response.body, codec, record)
            return self._pages.read(response.body, codec, record.name, record.offset)
        return None

    def _decode(self, data: Buffer, codec: str | None, record: _Record) -> Buffer | None:
        """Return a plain text in UTF-8, or None if it is left out."""
        text = self._pages.decode(data, codec, record.name, record.offset)
        if text is not None and len(text) > self._max_bytes:
            self._reject_long(record)
            return None
        return text

    def _count_other(self, record: _Record, reason: str) -> None:
        self._rejects.count(RejectReason("other_records", reason, 1, self._input_file.name, f"byte {record.offset}"))

    def _reject_long(self, record: _Record) -> None:
        reject_long_record(f"{self._input_file.path}: {record.name}", self._recipe, self._rejects)

    def _reject(self, record: _Record, reason: str, block: Buffer) -> None:
        self._rejects.reject(self._input_file.name, f"byte {record.offset}", reason, block[:SAVED_BYTES])


@dataclass(frozen=True)
class _Response:
    """The answer of a web server."""

    content_type: str = ""
    charset: str | None = None
    is_successful: bool = False
    body: Buffer = field(default=b"", repr=False)  # decoded, at most one byte more than allowed
    error: str = ""

    @property
    def is_html(self) -> bool:
        return self.content_type in HTML_TYPES

    @property
    def has_text(self) -> bool:
        return self.is_successful and (self.is_html or self.content_type == "text/plain")


def _parse_response(block: bytearray, max_bytes: int) -> _Response:
    """Parse an HTTP response, and decode its body if that has text.

    The body is a view of `block` if it is not encoded, because it may be long and fastwarc copies it.
    Some crawlers store the body decoded but keep the header that says how it was encoded. Raises
    PageTooHard if the body is encoded and too long for that.
    """
    start = block[:MAX_HEAD_BYTES]
    try:
        head = _open_response(start, "none")
    except OSError as e:
        return _Response(error=f"the head of the response cannot be read: {first_line(e)}")
    status = head.http_headers.status_code or 0
    content_type = (head.http_content_type or "").strip().lower()
    response = _Response(content_type, head.http_charset, 200 <= status < 300)
    if not response.has_text:
        return response
    max_bytes = MAX_PAGE_BYTES if response.is_html else max_bytes
    if not any(name in head.http_headers for name in ENCODING_HEADERS):
        head_bytes = len(start) - head.content_length
        return replace(response, body=memoryview(block)[head_bytes : head_bytes + max_bytes + 1])
    if len(block) > MAX_ENCODED_BYTES:
        raise PageTooHard(f"has a compressed or chunked body of more than {MAX_ENCODED_BYTES:,} bytes")
    error = ""
    decodings: tuple[Decoding, ...] = ("all", "none")
    for auto_decode in decodings:
        try:
            body = _read_up_to(_open_response(block, auto_decode).reader, max_bytes + 1)
        except OSError as e:
            error = error or f"the body of the response cannot be decoded: {first_line(e)}"
            continue
        if not error or HTML_START.match(body):
            return replace(response, body=body)
    return _Response(error=error)


def _open_response(block: bytearray, auto_decode: Decoding) -> Any:
    """Return a record of its own with `block`, because an error in a body ends the iteration over a file."""
    from fastwarc.warc import WarcRecord

    record = WarcRecord()
    record.set_bytes_content(bytes(block))
    record.is_http = True
    record.parse_http(auto_decode=auto_decode)
    return record


def _iter_records(input_file: InputFile, rejects: Rejects) -> Iterator[_Record]:
    """Yield the records of a file. Bytes that are not a record are rejected."""
    from fastwarc.warc import ArchiveIterator

    tape = _Tape(read_blocks(input_file, 0, None))
    start = end = 0  # of the part that fastwarc reads, and a place in its last record
    while True:
        try:
            # fastwarc calls only the methods that `_Tape` has; its stubs demand others as well.
            for warc_record in ArchiveIterator(cast("Any", tape), parse_http=False, stream_detect=False):
                offset = start + warc_record.stream_pos
                yield _Record(offset, warc_record)
                end = offset + max(warc_record.content_length, 1)
            tape.check()
            return
        except OSError as e:
            tape.check()
            rejects.reject(input_file.name, f"byte {end}", f"not a WARC record: {first_line(e)}", b"")
        next_start = tape.find_record(end)
        if next_start is None:
            return
        start, end = next_start, next_start + 1


class _Tape:
    """The bytes of a file, of which the last TAIL_BYTES can be read again.

    fastwarc would end the process if a stream raised an error, so errors are kept for `check`.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._block = memoryview(b"")  # bytes that were not read yet
        self._again = memoryview(b"")  # bytes before these that are read again
        self._tail = bytearray()  # the last bytes that were read, at most 2 * TAIL_BYTES
        self._position = 0  # in the file
        self._start = 0  # of what fastwarc reads, in the file
        self._error: Exception | None = None

    def read(self, num_bytes: int) -> bytes:
        """Return the next bytes, at most `num_bytes`; b"" at the end or after an error."""
        if self._again:
            data, self._again = bytes(self._again[:num_bytes]), self._again[num_bytes:]
        else:
            self._fill()
            data, self._block = bytes(self._block[:num_bytes]), self._block[num_bytes:]
        self._position += len(data)
        self._tail += data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        return data

    def _fill(self) -> None:
        if not self._block and self._error is None:
            try:
                self._block = memoryview(next(self._blocks, b""))
            except Exception as e:
                self._error = e

    def tell(self) -> int:
        """Return the position relative to the start of what fastwarc reads."""
        return self._position - self._start

    def check(self) -> None:
        """Raise the error of the stream, if there was one."""
        if self._error is not None:
            raise self._error

    def find_record(self, min_offset: int) -> int | None:
        """Go to the next record that begins at `min_offset` or later and return its offset; None if there is none."""
        while True:
            tail_start = self._position - len(self._tail)
            match = RECORD_START.search(self._tail, max(min_offset - tail_start, 0))
            if match is not None:
                index = match.start()
                del match  # it holds the bytes of `_tail`, which is shortened
                self._again = memoryview(bytes(self._tail[index:]) + bytes(self._again))
                del self._tail[index:]
                self._position = self._start = tail_start + index
                return self._position
            if not self.read(TAIL_BYTES):
                return None
