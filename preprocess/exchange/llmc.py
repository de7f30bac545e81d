"""Read and write the token files of llm.c, which modded-nanogpt and other speedruns read too.

A file has a header of 256 int32, of which three are used: a magic number, a version and the number of
tokens. The tokens follow. The magic number and the version decide the dtype: uint16 for GPT-2's
vocabulary, uint32 for Llama 3's. In these files an end-of-text token is before each document; in a
build it is after it.

Layout: llm.c, dev/data/data_common.py and llmc/dataloader.h.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.read_tokens import ADVICE, count_tokens, iter_ids, open_values, split_at_eot
from preprocess.exchange.tokens import iter_ends, iter_tokens
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenNames
from preprocess.shards.format import SPLITS, Build

HEADER_INTEGERS = 256
HEADER_BYTES = 4 * HEADER_INTEGERS
MAX_TOKEN_BYTES = 4
MAGIC_AND_VERSION = {"<u2": (20240520, 1), "<u4": (20240801, 7)}
FILE_TOKENS = 100_000_000  # as in the files that llm.c makes; its reader needs files of less than 2 GiB


def export_llmc(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write a build to files such as `NAME_train_000000.bin` in the folder `output`, and return their paths.

    The tokens of a split are divided into files of equal size (to one token), of at most about
    FILE_TOKENS tokens. As in llm.c's own files, a document may continue in the next one. Raises
    MisuseError if the documents do not end with an end-of-text token, or like `prepare_output`, and
    FolioError if the build is damaged.
    """
    if build.manifest.recipe.get("eot") != "append" or build.manifest.eot_id is None:
        raise MisuseError(
            f"the documents of {build.name} do not end with an end-of-text token, which separates documents in llm.c's "
            "files; rebuild with --eot append"
        )
    sizes = {split: _divide(_count_tokens(build, split)) for split in SPLITS}
    paths = {
        split: [output / f"{build.name}_{split}_{number:06}.bin" for number in range(len(sizes[split]))]
        for split in SPLITS
    }
    all_paths = [path for of_split in paths.values() for path in of_split]
    patterns = [f"{build.name}_{split}_*.bin" for split in SPLITS]
    prepare_output(output, all_paths, patterns=patterns, replace=replace)
    with write_together() as new, build.reading():
        for split in SPLITS:
            chunks = _Chunks(_iter_moved_tokens(build, split))
            for path, num_tokens in zip(paths[split], sizes[split], strict=True):
                with new.open(path) as file:
                    _write_header(file, build.manifest.dtype, num_tokens)
                    chunks.write(file, num_tokens)
    return all_paths


def _begins_with_eot(build: Build) -> bool:
    """Return whether documents have an end-of-text token also at the beginning, as the token that begins a text."""
    return bool(build.manifest.recipe.get("bos")) and build.manifest.bos_id == build.manifest.eot_id


def _count_tokens(build: Build, split: str) -> int:
    entry = build.manifest.splits[split]
    return entry.tokens - entry.documents if _begins_with_eot(build) else entry.tokens


def _divide(num_tokens: int) -> list[int]:
    """Return the number of tokens of each file."""
    num_files = math.ceil(num_tokens / FILE_TOKENS)
    edges = [num_tokens * i // num_files for i in range(num_files + 1)] if num_files else [0]
    return [end - begin for begin, end in itertools.pairwise(edges)]


def _iter_moved_tokens(build: Build, split: str) -> Iterator[np.ndarray]:
    """Yield the tokens of a split with one end-of-text token before each document and none after it."""
    if _begins_with_eot(build):
        yield from _iter_without_ends(build, split)
        return
    # The token that ends a document begins the next one.
    last = np.array([build.manifest.eot_id], build.dtype)
    for tokens in iter_tokens(build, split):
        yield last
        yield tokens[:-1]
        last = tokens[-1:]


def _iter_without_ends(build: Build, split: str) -> Iterator[np.ndarray]:
    """Yield the tokens of a split without the last token of each document."""
    ends, num_before = iter_ends(build, split), 0
    pending = next(ends, np.empty(0, np.int64))  # ends that are not yet reached
    for tokens in iter_tokens(build, split):
        is_kept = np.ones(len(tokens), bool)
        while len(pending) and pending[0] <= num_before + len(tokens):
            reached = pending[: np.searchsorted(pending, num_before + len(tokens), side="right")]
            is_kept[reached - num_before - 1] = False
            pending = pending[len(reached) :]
            if not len(pending):
                pending = next(ends, pending)
        yield tokens[is_kept]
        num_before += len(tokens)


def _write_header(file: BinaryIO, dtype: str, num_tokens: int) -> None:
    header = np.zeros(HEADER_INTEGERS, "<i4")
    header[:3] = *MAGIC_AND_VERSION[dtype], num_tokens
    file.write(header.data)


class _Chunks:
    """Arrays of tokens that are written to files of given sizes."""

    def __init__(self, arrays: Iterator[np.ndarray]) -> None:
        self._arrays, self._rest = arrays, np.empty(0, np.uint16)

    def write(self, file: BinaryIO, num_tokens: int) -> None:
        """Write the next `num_tokens` tokens. The arrays must have at least as many left."""
        while num_tokens:
            if not len(self._rest):
                self._rest = next(self._arrays)
            part, self._rest = self._rest[:num_tokens], self._rest[num_tokens:]
            file.write(np.ascontiguousarray(part).data)
            num_tokens -= len(part)


def read_llmc(files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
    """Yield the documents of llm.c's files, with the end-of-text token after each document instead of before it.

    A document may continue in the next file. Raises MisuseError if the tokenizer has no end-of-text token,
    and FolioError if a file is damaged or a document is too long.
    """
    if ids.eot_id is None:
        raise MisuseError(
            "the tokenizer has no end-of-text token, which separates documents in llm.c's files; choose the tokenizer "
            "with which the files were written"
        )
    return split_at_eot(_iter_with_last_eot(files, ids.eot_id), ids.eot_id)


def _iter_with_last_eot(files: list[TokenFile], eot_id: int) -> Iterator[tuple[TokenFile, np.ndarray]]:
    """Yield the tokens of all files without an end-of-text token at the beginning, and with one at the end.

    The token that begins a document then ends the one before it.
    """
    is_first, last = True, None
    for file in files:
        dtype = _read_header(file)
        for part in iter_ids(file, dtype, offset=HEADER_BYTES):
            yield file, part[1:] if is_first and part[0] == eot_id else part
            is_first, last = False, file
    if last is not None:
        yield last, np.array([eot_id], np.uint32)


def _find_missing(files: Sequence[TokenFile], ids: TokenIds) -> list[str]:
    """Return a warning for each data set whose files seem to be incomplete or in the wrong order.

    The files of a data set are in one folder, and their names differ only in a number. The first one begins with
    the end-of-text token of the first document, and all but the last one have the same size, to one token.
    """
    data_sets: dict[Path, list[TokenFile]] = {}
    for file in files:
        data_sets.setdefault(file.path.with_name(re.sub(r"\d+", "#", file.path.name)), []).append(file)
    warnings = []
    for of_set in data_sets.values():
        if not _begins_with(of_set[0], ids.eot_id):
            warnings.append(
                f"{of_set[0].path} does not begin with an end-of-text token, so a file before it may be missing; its "
                "first document may be the rest of one"
            )
        *others, last = (file.tokens.size_bytes for file in of_set)
        if others and (max(others) - min(others) > MAX_TOKEN_BYTES or last - max(others) > MAX_TOKEN_BYTES):
            odd = of_set[int(np.argmin(others))] if max(others) - min(others) > MAX_TOKEN_BYTES else of_set[-1]
            warnings.append(
                f"{odd.path} has {odd.tokens.size_bytes:,} bytes, and another file of its set {max(others):,}; all but "
                "the last one should have the same size: check their names, and that each is whole"
            )
    return warnings


def _begins_with(file: TokenFile, eot_id: int | None) -> bool:
    """Return whether the first token of a file is `eot_id`, or the file has no tokens."""
    dtype = _read_header(file)
    if file.tokens.size_bytes == HEADER_BYTES:
        return True
    with open_values(file.path, dtype, offset=HEADER_BYTES) as values:
        return int(values.read(1)[0]) == eot_id


NAMES = TokenNames(".bin", find_missing=_find_missing)


def _read_header(file: TokenFile) -> str:
    """Return the dtype of the tokens. Raises FolioError if the header is not that of llm.c, or does not fit."""
    if file.tokens.size_bytes < HEADER_BYTES:
        raise FolioError(
            f"{file.path} has {file.tokens.size_bytes:,} bytes, expected a header of {HEADER_BYTES:,}; {ADVICE}"
        )
    with open_values(file.path, "<i4") as values:
        magic, version, num_tokens = values.read(HEADER_INTEGERS)[:3].tolist()
    dtypes = {key: dtype for dtype, key in MAGIC_AND_VERSION.items()}
    if (magic, version) not in dtypes:
        raise FolioError(
            f"{file.path} has the magic number {magic} and the version {version}, expected "
            f"{' or '.join(f'{m} and {v}' for m, v in dtypes)} of llm.c; check --format"
        )
    dtype = dtypes[magic, version]
    if (found := count_tokens(file, np.dtype(dtype).itemsize, offset=HEADER_BYTES)) != num_tokens:
        raise FolioError(f"{file.path} has {found:,} tokens, but its header says {num_tokens:,}; {ADVICE}")
    return dtype
