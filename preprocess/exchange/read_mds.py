"""Read the documents of MDS shards of MosaicML Streaming (mds.py has the layout).

A file describes its columns itself, so `index.json` only says which files a folder must have. Shards are
not trusted: the offsets, the sizes of columns and the lengths of arrays are compared with the size of the
file before anything is allocated. Pickled columns are never decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from preprocess.errors import FolioError, MisuseError, format_quantity, shorten
from preprocess.exchange.mds import DIMENSION, INDEX, LABELS, LENGTH_DTYPES, TOKENS
from preprocess.exchange.parquet import NO_LABEL
from preprocess.exchange.read_tokens import ADVICE, check_lengths, make_length_error
from preprocess.exchange.tokens import CHUNK_DOCUMENTS
from preprocess.inputs import token_files
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenNames
from preprocess.shards.files import open_regular_file, parse_json, read_small_file

MAX_CONFIG_BYTES, MAX_COLUMNS = 1 << 20, 1_000
VALUE_DTYPES = {f"{kind}int{bits}": f"<{kind or 'i'}{bits // 8}" for kind in ("u", "") for bits in (8, 16, 32, 64)}
BYTES_DTYPE = "<i8"  # of a column of the encoding `bytes`, by LLM Foundry's default


def check_shards(folder: Path) -> None:
    """Raise FolioError if an index below `folder` is damaged, or names other shards than those beside it."""
    for path in sorted(folder.rglob(INDEX)):
        try:
            shards = [shard["raw_data"] for shard in parse_json(read_small_file(path))["shards"]]
            sizes = {Path(shard["basename"]).name: shard.get("bytes") for shard in shards}
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise FolioError(f"{path} does not list the shards ({type(e).__name__}); {ADVICE}") from e
        found = {file.name: file.stat().st_size for file in path.parent.glob("*.mds") if file.is_file()}
        if missing := sizes.keys() - found.keys():
            raise FolioError(
                f"{path} names {len(sizes):,} shards, of which {len(missing):,} are missing, such as "
                f"{shorten(min(missing))}; copy the folder again, decompress the shards, or name the files to import"
            )
        if extra := found.keys() - sizes.keys():
            raise FolioError(
                f"{path} does not name {format_quantity(len(extra), 'shard')} beside it, such as "
                f"{shorten(min(extra))}, perhaps of an earlier data set; delete them, or name the files to import"
            )
        for name, size in sizes.items():
            if size is not None and size != found[name]:
                raise FolioError(
                    f"{path.parent / name} has {found[name]:,} bytes, but {INDEX} says {shorten(str(size))}; copy the "
                    "folder again, or name the files to import"
                )


NAMES = TokenNames(".mds", check_folder=check_shards)


@dataclass(frozen=True)
class _Columns:
    """The columns of a shard, in their order."""

    names: list[str]
    encodings: list[str]
    sizes: list[int | None]  # bytes, None if each sample has its own

    @property
    def header_bytes(self) -> int:
        """The bytes of a sample before its columns."""
        return 4 * sum(not size for size in self.sizes)


def read_mds(files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
    """Yield the samples of MDS shards, each as a document: the column `tokens`, arrays or bytes of int64.

    A column `labels` of arrays gives the loss mask: each label must be the token at its position, or
    NO_LABEL. Raises MisuseError if the columns are not suitable, and FolioError if a file is damaged or a
    document is too long.
    """
    for file in files:
        with open_regular_file(file.path) as opened:
            yield from _read_file(file, opened)


def _read_file(file: TokenFile, opened: BinaryIO) -> Iterator[TokenBatch]:
    size_bytes = file.tokens.size_bytes
    head = opened.read(8)
    num_samples, begin = np.frombuffer(head, "<u4").tolist() if len(head) == 8 else (-1, 0)
    config_start = 4 + 4 * (num_samples + 1)
    if num_samples < 0 or not config_start <= begin <= min(size_bytes, config_start + MAX_CONFIG_BYTES):
        raise _make_error(file, f"it does not begin with the offsets of samples; {ADVICE}")
    opened.seek(config_start)
    columns = _parse_columns(file, opened.read(begin - config_start))
    for first in range(0, num_samples, CHUNK_DOCUMENTS):
        count = min(CHUNK_DOCUMENTS, num_samples - first)
        opened.seek(8 + 4 * first)
        ends = np.frombuffer(opened.read(4 * count), "<u4").astype(np.int64)
        sizes = np.diff(ends, prepend=begin)
        if sizes.min() < columns.header_bytes or ends[-1] > size_bytes:
            raise _make_error(file, f"its offsets do not ascend to its size; {ADVICE}")
        yield from _read_samples(file, opened, columns, begin, sizes)
        begin = int(ends[-1])
    if begin != size_bytes:
        raise _make_error(file, f"it has {size_bytes:,} bytes, its offsets say {begin:,}; {ADVICE}")


def _make_error(file: TokenFile, problem: str) -> FolioError:
    return FolioError(f"{file.path} cannot be read as MDS: {problem}")


def _parse_columns(file: TokenFile, config: bytes) -> _Columns:
    try:
        value = parse_json(config)
        columns = _Columns(*(list(value[f"column_{key}"]) for key in ("names", "encodings", "sizes")))
        is_valid = value["format"] == "mds" and len({*map(len, vars(columns).values())}) == 1
        is_valid &= len(columns.names) <= MAX_COLUMNS and all(isinstance(s, str) for s in columns.names)
        is_valid &= all(isinstance(text, str) for text in columns.encodings)
        is_valid &= all(size is None or (type(size) is int and 0 <= size < 1 << 32) for size in columns.sizes)
    except (ValueError, KeyError, TypeError) as e:
        raise _make_error(file, f"its columns are not described ({type(e).__name__}); {ADVICE}") from e
    if not is_valid:
        raise _make_error(file, f"the description of its columns is malformed; {ADVICE}")
    for name in (TOKENS, LABELS):
        found = [e for n, e in zip(columns.names, columns.encodings, strict=True) if n == name]
        suitable = [text for text in found if _find_dtype(text) or text in ("ndarray", "bytes")]
        if len(found) > 1 or found != suitable or (name == TOKENS and not found):
            what = f"the column {name!r} of {shorten(found[0])}" if found else f"no column {name!r}"
            raise MisuseError(
                f"{file.path} has {what}, expected one of ndarray:DTYPE with integers, or bytes of int64; convert it"
            )
    return columns


def _find_dtype(encoding: str) -> str | None:
    """Return the dtype of arrays of one dimension and any length, None for another encoding."""
    kind, _, name = encoding.partition(":")
    return VALUE_DTYPES.get(name) if kind == "ndarray" else None


def _read_samples(
    file: TokenFile, opened: BinaryIO, columns: _Columns, begin: int, sizes: np.ndarray
) -> Iterator[TokenBatch]:
    """Yield the documents of samples with these sizes in bytes, (D,), from byte `begin` on, a few at a time."""
    if int(sizes.max()) > 32 * token_files.MAX_DOCUMENT_TOKENS:
        raise make_length_error(file.path)
    opened.seek(begin)
    for group in _group(sizes, 8 * token_files.BATCH_TOKENS):
        found: dict[str, list[np.ndarray]] = {TOKENS: [], LABELS: []}
        for size in group.tolist():
            for name, ids in _read_sample(file, opened, columns, size):
                found[name].append(ids)
        lengths = np.array([len(ids) for ids in found[TOKENS]], np.int64)
        check_lengths(file.path, lengths)
        ids = _join(found[TOKENS])
        mask = _make_mask(file, found, ids) if LABELS in columns.names else None
        yield TokenBatch(ids, np.cumsum(lengths), np.full(len(lengths), file.number), mask)


def _group(sizes: np.ndarray, max_bytes: int) -> Iterator[np.ndarray]:
    """Yield consecutive parts of `sizes`, each with a sum of at most `max_bytes` or one size."""
    ends, first = np.cumsum(sizes), 0
    while first < len(sizes):
        last = int(np.searchsorted(ends, (int(ends[first - 1]) if first else 0) + max_bytes, side="right"))
        last = max(last, first + 1)
        yield sizes[first:last]
        first = last


def _join(parts: list[np.ndarray]) -> np.ndarray:
    """Return the concatenated values, (N,). A single part, which may be a long document, is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _make_mask(file: TokenFile, found: dict[str, list[np.ndarray]], ids: np.ndarray) -> np.ndarray:
    labels = _join(found[LABELS])
    mask: np.ndarray = labels != NO_LABEL
    same_lengths = all(len(a) == len(b) for a, b in zip(found[TOKENS], found[LABELS], strict=True))
    if not same_lengths or (labels != ids)[mask].any():
        raise FolioError(
            f"{file.path} has labels that are neither the token at their position nor {NO_LABEL}; remove the column "
            f"{LABELS!r} to train on all tokens"
        )
    return mask


def _read_sample(
    file: TokenFile, opened: BinaryIO, columns: _Columns, num_bytes: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and the values, (L,) int64, of the columns that are read of the next sample."""
    own_sizes = iter(np.frombuffer(_read(file, opened, columns.header_bytes), "<u4").tolist())
    sizes = [size or next(own_sizes) for size in columns.sizes]
    if (found := columns.header_bytes + sum(sizes)) != num_bytes:
        raise _make_error(file, f"a sample has {num_bytes:,} bytes, its columns {found:,}; {ADVICE}")
    for name, encoding, size in zip(columns.names, columns.encodings, sizes, strict=True):
        if name in (TOKENS, LABELS):
            yield name, _decode(file, encoding, _read(file, opened, size))
        else:
            opened.seek(size, io.SEEK_CUR)


def _read(file: TokenFile, opened: BinaryIO, num_bytes: int) -> memoryview:
    data = opened.read(num_bytes)
    if len(data) != num_bytes:
        raise _make_error(file, f"it ends in a sample; {ADVICE}")
    return memoryview(data)


def _decode(file: TokenFile, encoding: str, data: memoryview) -> np.ndarray:
    values: Any = None
    if encoding == "bytes":
        values = np.frombuffer(data, BYTES_DTYPE) if len(data) % 8 == 0 else None
    elif dtype := _find_dtype(encoding) or _find_own_dtype(data):
        data = data if _find_dtype(encoding) else data[1:]
        code = data[0] - DIMENSION if data else -1
        if 0 <= code < len(LENGTH_DTYPES):
            head = 1 + (1 << code)
            length = int.from_bytes(data[1:head], "little")
            if len(data) == head + length * np.dtype(dtype).itemsize:
                values = np.frombuffer(data, dtype, length, head)
    if values is None:
        raise _make_error(file, f"a column is not an array of one dimension with integers; {ADVICE}")
    if values.dtype == np.uint64 and len(values) and int(values.max()) > np.iinfo(np.int64).max:
        raise _make_error(file, f"a token is {int(values.max())}; {ADVICE}")
    result: np.ndarray = values.astype(np.int64, copy=False)
    return result


def _find_own_dtype(data: memoryview) -> str | None:
    """Return the dtype that an array of the encoding `ndarray` begins with: 8 times its bytes, plus 1 if signed."""
    bits, is_signed = (data[0] & ~1, data[0] & 1) if data else (0, 0)
    return f"<{'i' if is_signed else 'u'}{bits // 8}" if bits in (8, 16, 32, 64) else None
