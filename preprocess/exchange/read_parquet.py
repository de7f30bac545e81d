"""Read the documents of Parquet files of token ids, such as those of `export_parquet` and of Hugging Face datasets.

A file is examined in a child process first, and its rows are decoded a few megabytes at a time, as
those of Parquet files with text (readers/parquet.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.errors import FolioError, MisuseError, first_line, shorten
from preprocess.exchange.parquet import NO_LABEL
from preprocess.exchange.read_tokens import check_lengths
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenNames
from preprocess.readers.examiner import examine_files
from preprocess.readers.parquet_batches import OpenFile, read_row_group
from preprocess.readers.parquet_metadata import describe_chunks, find_chunk_indices, open_file
from preprocess.readers.parquet_pages import PageError, reject_joined_files

NAMES = TokenNames(".parquet")
IDS, LABELS, ATTENTION, LANGUAGE = "input_ids", "labels", "attention_mask", "language"
MAX_GROUP_VALUES = 1 << 27  # of a column in a row group, because one row could have them all
MAX_LANGUAGE_BYTES = 255


def read_parquet(files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
    """Yield the documents of Parquet files with a column `input_ids` of lists of integers.

    If there is a column `labels`, each label must be the id at its position, or NO_LABEL, which gives
    the loss mask. A column `language` gives the languages. Other columns are not read. Raises MisuseError
    if a column is missing or has another type, and FolioError if a file is damaged, or if a column
    `attention_mask` says that some tokens are padding.
    """
    reasons = examine_files([(file.tokens.path, "parquet") for file in files], [IDS, LABELS, ATTENTION, LANGUAGE])
    for file, reason in zip(files, reasons, strict=False):
        if reason:
            raise FolioError(f"{file.path} cannot be read as Parquet ({reason}); it is damaged, copy it again")
    for file in files:
        with _open(file) as opened:
            for group in range(opened.parquet.num_row_groups):
                for chunk in describe_chunks(opened.parquet, group, opened.indices):
                    if chunk.num_values > MAX_GROUP_VALUES:
                        raise FolioError(
                            f"{file.path} has {chunk.num_values:,} values of {shorten(chunk.name)} in a row group, "
                            f"expected at most {MAX_GROUP_VALUES:,}; write it again with smaller row groups"
                        )
                for batch in read_row_group(opened, group):
                    yield _convert(file, batch)


@contextmanager
def _open(file: TokenFile) -> Iterator[OpenFile]:
    """Open a file, check the types of its columns, and convert errors in its content to FolioError."""
    try:
        with (
            open_file(file.tokens.path, binary_type=pa.large_binary()) as parquet,
            open(file.path, "rb", buffering=0) as raw,
        ):
            names = _find_columns(file, parquet.schema_arrow)
            reject_joined_files(parquet, raw, str(file.path))
            indices = find_chunk_indices(parquet, set(names))
            yield OpenFile(file.tokens, parquet, raw, names, indices, 0)
    except (pa.ArrowException, PageError, OSError, EOFError, UnicodeDecodeError) as e:
        raise FolioError(
            f"{file.path} cannot be read as Parquet ({shorten(first_line(e))}); it is damaged or truncated, copy it "
            "again"
        ) from e


def _find_columns(file: TokenFile, schema: pa.Schema) -> list[str]:
    """Return the names of the columns to read."""
    if IDS not in schema.names:
        raise MisuseError(f"{file.path} has no column {IDS!r} with the tokens of a document; rename the column")
    names = [name for name in (IDS, LABELS, ATTENTION, LANGUAGE) if name in schema.names]
    for name in names:
        type_, is_valid = schema.types[schema.names.index(name)], schema.names.count(name) == 1
        if name == LANGUAGE:
            type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
            is_valid &= pa.types.is_string(type_) or pa.types.is_large_string(type_)
        else:
            is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
            is_valid &= is_list and pa.types.is_integer(type_.value_type)
        if not is_valid:
            expected = "text" if name == LANGUAGE else "lists of integers"
            raise MisuseError(
                f"{file.path} has the column {name!r} of type {shorten(str(type_))}, expected one column of "
                f"{expected}; rename or convert it"
            )
    return names


def _convert(file: TokenFile, batch: pa.RecordBatch) -> TokenBatch:
    ids, ends = _flatten(file, batch.column(IDS))
    mask, languages = None, None
    if ATTENTION in batch.schema.names:
        attention, attention_ends = _flatten(file, batch.column(ATTENTION))
        if not np.array_equal(ends, attention_ends) or (attention != 1).any():
            raise FolioError(
                f"{file.path} has a column {ATTENTION!r} that is not 1 for each token, so some tokens are padding; "
                "tokenize the text again without padding, or remove the padding"
            )
    if LABELS in batch.schema.names:
        labels, label_ends = _flatten(file, batch.column(LABELS))
        mask = labels != NO_LABEL
        if not np.array_equal(ends, label_ends) or (labels != ids)[mask].any():
            raise FolioError(
                f"{file.path} has labels that are neither the token at their position nor {NO_LABEL}; remove the "
                f"column {LABELS!r} to train on all tokens"
            )
    if LANGUAGE in batch.schema.names:
        languages = _read_languages(file, batch.column(LANGUAGE))
    return TokenBatch(ids, ends, np.full(len(ends), file.number), mask, languages)


def _flatten(file: TokenFile, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column of lists, (N,), and the exclusive end of each list in them, (D,) int64."""
    values = column.flatten()
    if column.null_count or values.null_count:
        raise FolioError(f"{file.path} has a document without tokens or a token without a value; remove the row")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    check_lengths(file.path, lengths)
    return values.to_numpy(zero_copy_only=False), np.cumsum(lengths, dtype=np.int64)


def _read_languages(file: TokenFile, column: pa.Array) -> list[str | None]:
    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    if (pc.max(pc.binary_length(texts)).as_py() or 0) > MAX_LANGUAGE_BYTES:
        raise FolioError(
            f"{file.path} has a language of more than {MAX_LANGUAGE_BYTES} bytes; remove the column {LANGUAGE!r}"
        )
    languages: list[str | None] = column.to_pylist()
    return languages
