"""Read files of tokens in order and in bounded memory, and divide them into documents. All importers use this.

What a file says about its size and its documents is not trusted. A number of tokens is compared with
the size of the file before anything is read or allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from preprocess.errors import FolioError
from preprocess.inputs import token_files
from preprocess.inputs.token_files import TokenBatch, TokenFile
from preprocess.shards.files import open_regular_file

ADVICE = "copy the file again, or check --format"


def count_tokens(file: TokenFile, item_bytes: int, *, offset: int = 0) -> int:
    """Return the number of tokens after `offset` bytes. Raises FolioError if the size does not fit."""
    num_bytes = file.tokens.size_bytes - offset
    if num_bytes < 0 or num_bytes % item_bytes:
        raise FolioError(
            f"{file.path} has {file.tokens.size_bytes:,} bytes, expected {f'{offset:,} and ' if offset else ''}"
            f"{item_bytes} for each token; {ADVICE}"
        )
    return num_bytes // item_bytes


def iter_ids(file: TokenFile, dtype: str, *, offset: int = 0) -> Iterator[np.ndarray]:
    """Yield the tokens of a file in order: arrays (N,) of `dtype`."""
    num_left = count_tokens(file, np.dtype(dtype).itemsize, offset=offset)
    with open_values(file.path, dtype, offset=offset) as values:
        while num_left:
            ids = values.read(min(num_left, token_files.BATCH_TOKENS))
            num_left -= len(ids)
            yield ids


class Values:
    """The values of a file, which are read in order."""

    def __init__(self, path: Path, file: object, dtype: str) -> None:
        self._path, self._file, self._dtype = path, file, np.dtype(dtype)

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` values, (count,). Raises FolioError if the file ends before."""
        values: np.ndarray = np.fromfile(self._file, self._dtype, count)  # type: ignore[call-overload]
        if len(values) != count:
            raise FolioError(f"{self._path} ends after {len(values):,} of {count:,} values; {ADVICE}")
        return values


@contextmanager
def open_values(path: Path, dtype: str, *, offset: int = 0) -> Iterator[Values]:
    """Open a file of values of `dtype`, which begin after `offset` bytes."""
    with open_regular_file(path) as file:
        file.seek(offset)
        yield Values(path, file, dtype)


def read_documents(file: TokenFile, dtype: str, lengths: Iterable[np.ndarray]) -> Iterator[TokenBatch]:
    """Yield the documents of a file without a header, whose lengths in tokens are known.

    `lengths`: arrays (D,) int64. Raises FolioError if a length is negative, if a document is too long,
    or if the sum of the lengths is not the number of tokens in the file.
    """
    num_left = num_tokens = count_tokens(file, np.dtype(dtype).itemsize)
    with open_values(file.path, dtype) as values:
        for part in lengths:
            check_lengths(file.path, part)
            if (num_found := int(part.sum(dtype=np.int64))) > num_left:
                raise _make_count_error(file, num_tokens - num_left + num_found, num_tokens)
            num_left -= num_found
            for documents in group_by_tokens(part):
                ends = np.cumsum(documents, dtype=np.int64)
                files = np.full(len(ends), file.number)
                yield TokenBatch(values.read(int(ends[-1])), ends, files)
    if num_left:
        raise _make_count_error(file, num_tokens - num_left, num_tokens)


def _make_count_error(file: TokenFile, num_found: int, num_tokens: int) -> FolioError:
    return FolioError(
        f"the documents of {file.path} have {num_found:,} tokens or more, but the file has {num_tokens:,}; {ADVICE}"
        if num_found > num_tokens
        else f"the documents of {file.path} have {num_found:,} tokens, but the file has {num_tokens:,}; {ADVICE}"
    )


def check_lengths(path: Path, lengths: np.ndarray) -> None:
    """Raise FolioError if one of the lengths of documents, (D,) int64, is negative or too large."""
    if len(lengths) and int(lengths.min()) < 0:
        raise FolioError(f"the ends of the documents of {path} do not ascend; {ADVICE}")
    if len(lengths) and int(lengths.max()) > token_files.MAX_DOCUMENT_TOKENS:
        raise make_length_error(path)


def make_length_error(path: Path) -> FolioError:
    return FolioError(
        f"{path} has a document of more than {token_files.MAX_DOCUMENT_TOKENS:,} tokens, the maximum; check --format "
        "and --tokenizer, whose end-of-text id may end the documents, or divide the document"
    )


def group_by_tokens(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield consecutive parts of `lengths`, (D,), each of about BATCH_TOKENS tokens or one document."""
    ends, first = np.cumsum(lengths, dtype=np.int64), 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, begin + token_files.BATCH_TOKENS, side="right"))
        last = max(last, first + 1)
        yield lengths[first:last]
        first = last


def split_at_eot(parts: Iterable[tuple[TokenFile, np.ndarray]], eot_id: int | None) -> Iterator[TokenBatch]:
    """Yield the documents of a stream of tokens, each of which ends with `eot_id` or at the end of the stream.

    `parts`: pairs of a file and some of its tokens, (N,). A document may be in several parts. Raises
    FolioError if a document is too long.
    """
    pending: list[np.ndarray] = []  # of a document that does not end yet
    num_pending, first_file = 0, 0
    for file, ids in parts:
        ends = np.flatnonzero(ids == eot_id).astype(np.int64) + 1 if eot_id is not None else np.empty(0, np.int64)
        num_complete = int(ends[-1]) if len(ends) else 0
        if num_pending + (int(ends[0]) if len(ends) else len(ids)) > token_files.MAX_DOCUMENT_TOKENS:
            raise make_length_error(file.path)
        if len(ends):
            files = np.full(len(ends), file.number)
            if num_pending:
                files[0] = first_file
            yield TokenBatch(np.concatenate([*pending, ids[:num_complete]]), ends + num_pending, files)
            pending, num_pending = [], 0
        if num_complete < len(ids):
            first_file = first_file if num_pending else file.number
            pending.append(ids[num_complete:])
            num_pending += len(ids) - num_complete
    if num_pending:
        yield TokenBatch(np.concatenate(pending), np.array([num_pending], np.int64), np.array([first_file]))
