"""Read HTML pages, each as one document: its main text.

A page that cannot be decoded follows the recipe's rule for invalid UTF-8, and one that needs too
much memory or time its rule for documents that are too long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.inputs.open_input import read_blocks
from preprocess.readers.html_text import find_codec_of_page
from preprocess.readers.page_process import MAX_PAGE_BYTES, PageTooHard, check_page_size, extract_in_child
from preprocess.readers.record_sizes import get_max_record_bytes
from preprocess.readers.records import Records, Rejects, format_utf8_error
from preprocess.readers.reject_reasons import RejectReason
from preprocess.readers.utf8 import Buffer, find_invalid, find_invalid_utf8, transcode
from preprocess.recipes.schema import Recipe
from preprocess.recipes.text_encodings import AUTO, find_codec

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_html(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Iterator[Records]:
    """Yield the text of a page as one record with the column `text`, or nothing if it is left out."""
    data = bytearray()
    for block in read_blocks(input_file, span.start, span.stop):
        data += block
        if len(data) > MAX_PAGE_BYTES:  # it is rejected below
            break
    is_decoded = bool(input_file.encoding) or recipe.encoding != AUTO
    codec = None if is_decoded else find_codec_of_page(data, None)
    text = PageReader(input_file, recipe, rejects).read(data, codec, "the page", 0)
    if text is not None:
        yield Records({"text": make_texts([text])}, 0, offsets=np.zeros(1, np.int64))


def make_texts(texts: Sequence[Buffer]) -> pa.LargeStringArray:
    """Return a column of texts, which are UTF-8. A single one is not copied."""
    if len(texts) == 1:
        offsets = np.array([0, len(texts[0])], np.int64)
        return pa.LargeStringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(texts[0]))
    return pa.array([bytes(text) for text in texts], pa.large_binary()).view(pa.large_string())


class PageReader:
    """Decodes pages and extracts their texts, and applies the recipe's rules if that is impossible."""

    def __init__(self, input_file: InputFile, recipe: Recipe, rejects: Rejects) -> None:
        self._input_file, self._recipe, self._rejects = input_file, recipe, rejects

    def read(self, data: Buffer, codec: str | None, record: str, offset: int) -> bytes | None:
        """Return the main text of an HTML page in UTF-8, or None if it is left out.

        `codec`: of the page, None for UTF-8. `record`: the name of the page in messages, `offset`: its
        place in the file. Raises FolioError if the recipe makes it an error that the page is not valid
        in its encoding, or that it is too long or needs too much memory or time.
        """
        try:
            check_page_size(len(data))
            page = self.decode(data, codec, record, offset)
            return None if page is None else extract_in_child(page)
        except PageTooHard as e:
            self.reject(e, data, record, offset)
            return None

    def reject(self, error: PageTooHard, data: Buffer, record: str, offset: int) -> None:
        """Count a page that is left out because of `error`, or raise FolioError, as the recipe says."""
        if self._recipe.oversized == "error":
            raise FolioError(
                f"{self._input_file.path}: {record} {error}; pass --oversized skip to leave it out"
            ) from error
        self._rejects.add(RejectReason("oversized", str(error), 1, self._input_file.name, f"byte {offset}"), data)

    def decode(self, data: Buffer, codec: str | None, record: str, offset: int) -> Buffer | None:
        """Return a page or a text in UTF-8 as `read` decodes it, or None if it is left out.

        The result may be a view of `data`. If it has more bytes than a record may have, the rest of it is
        missing. A Python string of it could take four times its size.
        """
        invalid = find_invalid_utf8(data) if codec is None else find_invalid(data, codec)
        if invalid is not None:
            if self._recipe.invalid_utf8 == "error":
                raise FolioError(self._explain(data, codec, record, invalid))
            reason = f"not {codec or 'UTF-8'} ({invalid[1]})"
            found = RejectReason("invalid_utf8", reason, 1, self._input_file.name, f"byte {offset}")
            is_replaced = self._recipe.invalid_utf8 == "replace"
            self._rejects.add(found, data, has_position=is_replaced)
            if not is_replaced:
                return None
        text = data
        if codec not in (None, "utf-8") or invalid is not None:
            text = transcode(data, codec or "utf-8", get_max_record_bytes(self._recipe))
        has_mark = bytes(text[: len(BYTE_ORDER_MARK)]) == BYTE_ORDER_MARK
        return memoryview(text)[len(BYTE_ORDER_MARK) :] if has_mark else text

    def _explain(self, data: Buffer, codec: str | None, record: str, invalid: tuple[int, str]) -> str:
        index, reason = invalid
        if codec is None and self._input_file.format == "html":
            return format_utf8_error(self._input_file, f"at offset {index:,}", data[index], reason)
        charset = f"not valid in its charset {codec}" if codec else "not UTF-8 and names no charset"
        return (
            f"{self._input_file.path}: {record} is {charset} (offset {index:,}: {reason}); pass --invalid-utf8 "
            "replace, as browsers do, or --invalid-utf8 skip, or an --encoding"
        )


def get_default_codec(recipe: Recipe) -> str | None:
    """Return the encoding of the recipe, for pages that name none; None for UTF-8."""
    return None if recipe.encoding == AUTO else find_codec(recipe.encoding) or None
