"""Read and write Megatron-LM's indexed datasets: `.bin` with the tokens, and `.idx` with the documents.

`.idx` has a header, the length of each sequence (int32), its offset in bytes (int64), and the number
of the first sequence of each document (int64). A build is
written with one sequence per document.

Layout: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.exchange.read_tokens import ADVICE, check_lengths, open_values, read_documents
from preprocess.exchange.tokens import CHUNK_DOCUMENTS, iter_ends, iter_tokens
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.token_files import TokenBatch, TokenFile, TokenIds, TokenNames
from preprocess.shards.format import SPLITS, Build

MAGIC, VERSION = b"MMIDIDX\0\0", 1
DTYPE_CODES = {"<u2": 8, "<i4": 4}
READ_DTYPES = {1: "u1", 4: "<i4", 5: "<i8", 8: "<u2"}  # by code; the others are signed and small, or floats
HEADER_BYTES = 34
INDEX = ".idx"
NAMES = TokenNames(".bin", (INDEX,))
# Megatron-LM writes uint16 for smaller vocabularies only, but one of its readers takes all vocabularies of less than
# 65,536 for uint16. Between the two, files that it wrote itself are misread.
MAX_UINT16_VOCAB = 65_500
MIN_INT32_VOCAB = (1 << 16) + 1


def export_megatron(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write a build to the files `train.bin`, `train.idx`, `val.bin` and `val.idx`, and return their paths.

    The path of a split without its suffix is an element of Megatron-LM's `--data-path`. A split without
    documents gets no files. Raises MisuseError if Megatron-LM would misread a vocabulary of this size,
    or like `prepare_output`, and FolioError if the build is damaged.
    """
    if MAX_UINT16_VOCAB <= build.vocab_size < MIN_INT32_VOCAB:
        raise MisuseError(
            f"{build.name} has {build.vocab_size:,} ids; Megatron-LM misreads vocabularies of {MAX_UINT16_VOCAB:,} to "
            f"{MIN_INT32_VOCAB - 1:,} ids; rebuild with a smaller or a larger vocabulary"
        )
    dtype = "<u2" if build.vocab_size < MAX_UINT16_VOCAB else "<i4"
    splits = [split for split in SPLITS if build.manifest.splits[split].documents]
    paths = {split: (output / f"{split}.bin", output / f"{split}.idx") for split in splits}
    all_paths = [path for of_split in paths.values() for path in of_split]
    # A validation split of another build beside the new training split would be taken for its own.
    patterns = [f"{split}.{suffix}" for split in SPLITS for suffix in ("bin", "idx")]
    prepare_output(output, all_paths, patterns=patterns, replace=replace)
    with write_together() as new, build.reading():
        for split, (tokens_path, index_path) in paths.items():
            with new.open(tokens_path) as file:
                for tokens in iter_tokens(build, split):
                    file.write(tokens.astype(dtype, copy=False).data)
            with new.open(index_path) as file:
                _write_index(file, build, split, dtype)
    return all_paths


def _write_index(file: BinaryIO, build: Build, split: str, dtype: str) -> None:
    """Write `.idx`. The ends are read twice, because a table of all lengths might not fit in memory."""
    num_documents, item_bytes = build.manifest.splits[split].documents, np.dtype(dtype).itemsize
    file.write(MAGIC + struct.pack("<QBQQ", VERSION, DTYPE_CODES[dtype], num_documents, num_documents + 1))
    last = 0
    for ends in iter_ends(build, split):
        file.write(np.diff(ends, prepend=last).astype("<i4").data)
        last = int(ends[-1])
    last = 0
    for ends in iter_ends(build, split):
        begins = np.concatenate([[last], ends[:-1]])
        file.write((begins * item_bytes).astype("<i8").data)
        last = int(ends[-1])
    for first in range(0, num_documents + 1, CHUNK_DOCUMENTS):
        file.write(np.arange(first, min(first + CHUNK_DOCUMENTS, num_documents + 1), dtype="<i8").data)


def read_megatron(files: list[TokenFile], ids: TokenIds) -> Iterator[TokenBatch]:
    """Yield the documents of `.bin` files. The sequences of a document are joined.

    Raises FolioError if a file is damaged or a document is too long.
    """
    for file in files:
        index = _Index(file)
        yield from read_documents(file, index.dtype, index.iter_document_lengths())


class _Index:
    """An `.idx` file, whose parts are read in chunks."""

    def __init__(self, file: TokenFile) -> None:
        """Read the header. Raises FolioError if it is not one, or does not fit the size of the file."""
        self._index: InputFile = file.companions[INDEX]
        self._path = Path(self._index.path)
        if self._index.size_bytes < HEADER_BYTES:
            raise FolioError(
                f"{self._path} has {self._index.size_bytes:,} bytes, expected a header of {HEADER_BYTES}; {ADVICE}"
            )
        with open_values(self._path, "u1") as values:
            header = values.read(HEADER_BYTES).tobytes()
        version, code, self._num_sequences, self._num_bounds = struct.unpack_from("<QBQQ", header, len(MAGIC))
        if not header.startswith(MAGIC) or version != VERSION:
            raise FolioError(f"{self._path} is not an index of Megatron-LM, version {VERSION}; {ADVICE}")
        if code not in READ_DTYPES:
            raise FolioError(f"{self._path} has tokens of type {code}, expected {', '.join(map(str, READ_DTYPES))}")
        self.dtype = READ_DTYPES[code]
        expected_bytes = HEADER_BYTES + 12 * self._num_sequences + 8 * self._num_bounds
        # A multimodal dataset has one byte more for each sequence.
        if not self._num_bounds or self._index.size_bytes not in (expected_bytes, expected_bytes + self._num_sequences):
            raise FolioError(
                f"{self._path} has {self._index.size_bytes:,} bytes, but its header says {self._num_sequences:,} "
                f"sequences and {self._num_bounds:,} bounds of documents; {ADVICE}"
            )

    def iter_document_lengths(self) -> Iterator[np.ndarray]:
        """Yield the lengths of the documents in tokens: arrays (D,) int64."""
        sequences = self._iter_sequence_ends()
        ends, num_before, last = np.empty(0, np.int64), 0, 0  # `num_before`: sequences before those in `ends`
        for bounds in self._iter_bounds():
            begin, document_ends = last, []
            for bound in bounds.tolist():  # the number of sequences before the end of a document
                while bound > num_before + len(ends):
                    num_before, ends = num_before + len(ends), next(sequences)
                if bound > num_before:
                    last = int(ends[bound - num_before - 1])
                document_ends.append(last)
            yield np.diff(np.array(document_ends, np.int64), prepend=begin)

    def _iter_bounds(self) -> Iterator[np.ndarray]:
        """Yield the number of sequences before the end of each document: arrays (D,) int64, ascending."""
        offset, last, num_left = HEADER_BYTES + 12 * self._num_sequences, 0, self._num_bounds
        with open_values(self._path, "<i8", offset=offset) as values:
            is_first = True
            while num_left:
                bounds = values.read(min(num_left, CHUNK_DOCUMENTS))
                num_left -= len(bounds)
                if (np.diff(bounds, prepend=last) < 0).any() or (is_first and bounds[0] != 0):
                    raise FolioError(f"{self._path} has documents that do not ascend from sequence 0; {ADVICE}")
                last = int(bounds[-1])
                if last > self._num_sequences or (not num_left and last != self._num_sequences):
                    raise FolioError(
                        f"{self._path} has documents up to sequence {last:,} of {self._num_sequences:,}; {ADVICE}"
                    )
                yield bounds[1:] if is_first else bounds
                is_first = False

    def _iter_sequence_ends(self) -> Iterator[np.ndarray]:
        """Yield the exclusive ends of the sequences in tokens: arrays (S,) int64.

        Raises FolioError if a sequence does not begin where the one before it ends.
        """
        item_bytes, end = np.dtype(self.dtype).itemsize, 0
        with (
            open_values(self._path, "<i4", offset=HEADER_BYTES) as lengths,
            open_values(self._path, "<i8", offset=HEADER_BYTES + 4 * self._num_sequences) as offsets,
        ):
            for first in range(0, self._num_sequences, CHUNK_DOCUMENTS):
                count = min(CHUNK_DOCUMENTS, self._num_sequences - first)
                part = lengths.read(count).astype(np.int64)
                check_lengths(self._path, part)
                ends = end + np.cumsum(part)
                if (offsets.read(count) != (ends - part) * item_bytes).any():
                    raise FolioError(f"{self._path} has sequences that do not follow one another; {ADVICE}")
                end = int(ends[-1])
                yield ends
