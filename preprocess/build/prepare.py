"""The tasks on one partition: read and clean its documents, hash them, and encode them.

If the tokenizer is known, `prepare_partition` does everything in one pass: each batch of documents
is read, cleaned, hashed and encoded while it is in memory, and only tables and ids are written. If
the tokenizer is yet to be trained, it writes the cleaned texts instead, and `encode_partition`
encodes them after the training.

Duplicates are encoded too. Which documents are in the build is known only after all partitions have
been read, and encoding some documents in vain is faster than storing and reading all texts again.
The ids of the control tokens of a document (author, city, year) are also known only then. The
encoded document has the id 0 in their place, so its length is final.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.build.contamination import OVERLAPS_SUFFIX, load_decontaminator, write_overlaps
from preprocess.build.distinct_values import DistinctValues
from preprocess.build.encoder import Encoder
from preprocess.build.receipts import (
    CountReceipt,
    EncodeReceipt,
    FileChecksum,
    LinesReceipt,
    PartitionValues,
    PrepareReceipt,
)
from preprocess.build.repeated_lines import LINES_SUFFIX, LineRemover, write_units
from preprocess.build.work_dir import (
    DOCUMENT_DTYPE,
    REJECTS_SUFFIX,
    Chunk,
    HashedFile,
    WorkDir,
    hash_file,
)
from preprocess.chats.marked_text import count_plain_bytes, get_plain_texts
from preprocess.documents import get_text_buffers
from preprocess.filters.chain import FilterChain
from preprocess.inputs.input_files import InputFile
from preprocess.readers.partitions import Partition
from preprocess.readers.records import Rejects
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import make_partial_path
from preprocess.shards.manifest import TokenizerEntry
from preprocess.stages.decontaminate import CONTAMINATED
from preprocess.stages.dedup import hash_contents, hash_groups
from preprocess.stages.near_dup import hash_bands, hash_shingles
from preprocess.stages.pipeline import count_characters, count_dropped, decontaminate, read_documents
from preprocess.stages.slices import iter_groups, slice_texts
from preprocess.tokenizers import load_stored_tokenizer
from preprocess.tokenizers.characters import NUM_CODE_POINTS, decode_code_points
from preprocess.tokenizers.sentencepiece_bpe import SPACE_MARKER

INDEXED_COLUMNS = ("author", "city", "lang")  # a document table has an index into the distinct values


@dataclass(frozen=True)
class TaskContext:
    """What a task needs besides its partition. Must be small, as it is pickled for every task."""

    recipe: Recipe
    input_files: Mapping[int, InputFile]  # by number; only the files that the task reads
    work_dir: WorkDir
    tokenizer: TokenizerEntry | None  # of the tokenizer in the work directory; None if it is yet to be trained
    use_reference: bool = False  # encode with the reference backend even if there is a faster one
    num_threads: int = 1  # for encoding one batch


def count_partition(context: TaskContext, partition: Partition) -> CountReceipt:
    """Count the characters of the spans of divided texts, and write the receipt to the work directory.

    Raises FolioError if an input file cannot be read.
    """
    counts = [
        None if span.stop is None else count_characters(context.input_files[span.file_number], span, context.recipe)
        for span in partition.spans
    ]
    receipt = CountReceipt(files={}, num_documents=0, num_characters=counts)
    context.work_dir.write_receipt(partition.number, receipt)
    return receipt


def count_lines(context: TaskContext, partition: Partition) -> LinesReceipt:
    """Write the hashes of the lines or paragraphs of a partition, and the receipt, to the work directory.

    Raises FolioError if an input file cannot be read.
    """
    spans = ((context.input_files[span.file_number], span) for span in partition.spans)
    documents = read_documents(spans, context.recipe, Rejects(None), Counter())
    with context.work_dir.create_files(partition.number, LINES_SUFFIX) as files:
        num_documents = write_units(documents, context.recipe, files[LINES_SUFFIX])
    receipt = LinesReceipt(files=_get_checksums(files), num_documents=num_documents)
    context.work_dir.write_receipt(partition.number, receipt)
    return receipt


def prepare_partition(context: TaskContext, partition: Partition) -> PrepareReceipt:
    """Read, clean and hash the documents of a partition; encode them if there is a tokenizer.

    Writes the files of the partition and its receipt to the work directory. Raises FolioError if an
    input file cannot be read, and BackendMismatch if the fast encoding backend fails or is wrong.
    """
    work_dir = context.work_dir
    rejects_path = work_dir.file(partition.number, REJECTS_SUFFIX)
    cleaned = Counter[str]()
    spans = ((context.input_files[span.file_number], span) for span in partition.spans)
    names = {number: input_file.name for number, input_file in context.input_files.items()}
    writer, filters = _PartitionWriter(context), FilterChain(context.recipe)
    remover = LineRemover(work_dir, context.recipe, partition.number) if context.recipe.dedup_lines else None
    decontaminator = load_decontaminator(work_dir, context.recipe)
    suffixes = (*writer.suffixes, *([OVERLAPS_SUFFIX] if decontaminator else []))
    with (
        _open_rejects(rejects_path) as rejects,
        work_dir.create_files(partition.number, "values", *suffixes) as files,
    ):
        writer.open(files)
        documents = read_documents(spans, context.recipe, rejects, cleaned, filters)
        if remover:
            documents = remover.apply_to_all(documents)
        count = partial(count_dropped, rejects, CONTAMINATED, names=names)
        for batch, sides in decontaminate(documents, decontaminator, context.recipe, count):
            if batch.num_rows:
                empty = writer.write(batch, sides)
                count_dropped(rejects, "empty", empty, names)
            del batch  # it may be a record of 128 MB
        writer.close()
        rejects.flush()
        if decontaminator:
            write_overlaps(files[OVERLAPS_SUFFIX], decontaminator)
        files["values"].write(json.dumps(dataclasses.asdict(writer.values)).encode())
    checksums = _get_checksums(files)
    if rejects_path.exists():
        checksums[REJECTS_SUFFIX] = FileChecksum(rejects_path.stat().st_size, hash_file(rejects_path))
    receipt = PrepareReceipt(
        files=checksums,
        num_documents=writer.num_documents,
        text_bytes=writer.text_bytes,
        num_positions=rejects.finished_spans,
        dropped=dict(rejects.counts),
        reasons=rejects.reasons.as_list(),
        cleaned=dict(cleaned),
        filters=filters.counts,
        removed_lines=dict(remover.counts) if remover else {},
        encoding=writer.encoder.report() if writer.encoder else None,
    )
    work_dir.write_receipt(partition.number, receipt)
    return receipt


@contextmanager
def _open_rejects(path: Path) -> Iterator[Rejects]:
    """Yield the rejects of a task. They are saved in `path`, even if the task fails, and replace those there."""
    path.unlink(missing_ok=True)
    partial = make_partial_path(path)
    try:
        yield Rejects(partial)
    finally:
        if partial.exists():
            os.replace(partial, path)


def encode_partition(context: TaskContext, partition: int) -> EncodeReceipt:
    """Encode the texts that `prepare_partition` has written, after the tokenizer was trained.

    Writes `.ids`, `.lengths`, for chats `.mask`, and the receipt to the work directory. Raises BackendMismatch if the
    fast encoding backend fails or is wrong.
    """
    work_dir = context.work_dir
    encoder, num_documents = get_encoder(context), 0
    with work_dir.create_files(partition, *get_encoded_suffixes(context.recipe)) as files:
        for chunk, texts in read_texts(work_dir, partition):
            encoder.encode(texts, work_dir.map_documents(chunk), files)
            num_documents = chunk.last
    receipt = EncodeReceipt(files=_get_checksums(files), num_documents=num_documents, encoding=encoder.report())
    work_dir.write_receipt(partition, receipt)
    return receipt


def get_encoded_suffixes(recipe: Recipe) -> tuple[str, ...]:
    """Return the suffixes of the files that an encoder writes."""
    return ("ids", "lengths") if recipe.chat_columns is None else ("ids", "lengths", "mask")


def read_texts(work_dir: WorkDir, partition: int) -> Iterator[tuple[Chunk, pa.LargeStringArray]]:
    """Yield the texts of a partition's documents in chunks, in the order of the document table."""
    first = 0
    with pa.OSFile(str(work_dir.file(partition, "text"))) as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            yield Chunk(partition, first, first + batch.num_rows), batch.column(0)
            first += batch.num_rows


def _get_checksums(files: Mapping[str, HashedFile]) -> dict[str, FileChecksum]:
    return {suffix: file.checksum for suffix, file in files.items()}


class _PartitionWriter:
    """Writes the document table of one partition, and its ids or its texts."""

    def __init__(self, context: TaskContext) -> None:
        self._recipe = context.recipe
        self.encoder = get_encoder(context) if context.tokenizer is not None else None
        self.suffixes = ("docs", *(get_encoded_suffixes(self._recipe) if self.encoder else ("text",)))
        if self._recipe.near_dedup:
            self.suffixes += ("shingles", "num_shingles", "bands")
        self.num_documents = self.text_bytes = 0
        self._distinct = {name: DistinctValues(name) for name in INDEXED_COLUMNS}
        self._is_in_alphabet = np.zeros(NUM_CODE_POINTS, bool) if self._recipe.tokenizer == "char" else None

    def open(self, files: Mapping[str, HashedFile]) -> None:
        self._files = files
        if self.encoder:
            self.encoder.start_partition()
        else:
            schema = pa.schema([("text", pa.large_string())])
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._text_writer = pa.ipc.new_stream(pa.PythonFile(files["text"], "w"), schema, options=options)

    def write(self, batch: pa.RecordBatch, sides: np.ndarray) -> pa.RecordBatch:
        """Write a batch of documents, and return those that were left out because they are empty."""
        has_chats = self._recipe.chat_columns is not None
        sizes = count_plain_bytes(batch.column("text"), has_chats=has_chats)
        empty = batch.slice(0, 0)
        if not sizes.all():
            has_text = sizes > 0
            empty = batch.filter(pa.array(~has_text))
            batch, sides, sizes = batch.filter(pa.array(has_text)), sides[has_text], sizes[has_text]
        texts = batch.column("text")
        documents = self._make_document_table(batch, sides, sizes)
        self._files["docs"].write(documents)
        self.num_documents += len(documents)
        self.text_bytes += int(sizes.sum())
        if self._is_in_alphabet is not None:
            slices, _ = slice_texts(get_plain_texts(texts, has_chats=has_chats), "characters")
            for start, stop in iter_groups(slices):
                data, _ = get_text_buffers(slices.slice(start, stop - start))
                self._is_in_alphabet[decode_code_points(data)] = True
        if self._recipe.near_dedup:
            self._write_shingles(get_plain_texts(texts, has_chats=has_chats))
        if self.encoder:
            self.encoder.encode(texts, documents, self._files)
        else:
            self._text_writer.write_batch(pa.record_batch([texts], ["text"]))
        return empty

    def _write_shingles(self, texts: pa.LargeStringArray) -> None:
        recipe = self._recipe
        shingles, counts = hash_shingles(texts, recipe.near_dedup_words)
        self._files["shingles"].write(shingles)
        self._files["num_shingles"].write(counts)
        self._files["bands"].write(hash_bands(shingles, counts, recipe.near_dedup_bands, recipe.near_dedup_rows))

    def _make_document_table(self, batch: pa.RecordBatch, sides: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        documents = np.empty(batch.num_rows, DOCUMENT_DTYPE)
        hashes = hash_contents(batch.column("text"))
        documents["hash"], documents["side"], documents["text_bytes"] = hashes, sides, sizes
        documents["group"] = hash_groups(batch, hashes, self._recipe)
        documents["source"] = batch.column("source").to_numpy()
        documents["position"] = batch.column("position").to_numpy()
        documents["year"] = batch.column("year").fill_null(-1).to_numpy()
        for name in INDEXED_COLUMNS:
            documents[name] = self._index_values(name, batch.column(name))
        documents["has_u2581"] = False
        if self._recipe.tokenizer == "sentencepiece":
            contains_marker = pc.match_substring(batch.column("text"), SPACE_MARKER)
            documents["has_u2581"] = contains_marker.to_numpy(zero_copy_only=False)
        return documents

    def _index_values(self, name: str, column: pa.StringArray) -> np.ndarray:
        """Return the index of each value in the field's distinct values, -1 for null: (D,) int32."""
        if column.null_count == len(column):
            return np.full(len(column), -1, np.int32)
        encoded = column.dictionary_encode()
        of_batch = self._distinct[name].number(encoded.dictionary.to_pylist())
        lookup = np.array([*of_batch, -1], np.int32)  # its last entry is for null
        return lookup[encoded.indices.fill_null(len(of_batch)).to_numpy(zero_copy_only=False)]

    def close(self) -> None:
        if not self.encoder:
            self._text_writer.close()

    @property
    def values(self) -> PartitionValues:
        """The values that the table refers to."""
        alphabet = np.flatnonzero(self._is_in_alphabet).tolist() if self._is_in_alphabet is not None else None
        loss = self.encoder.measure_loss() if self.encoder else None
        return PartitionValues(
            **{name: list(self._distinct[name]) for name in INDEXED_COLUMNS},
            alphabet=alphabet,
            num_characters=loss.num_characters if loss else 0,
            character_differences=dict(loss.differences) if loss else {},
        )


_encoders: dict[tuple[Any, ...], Encoder] = {}  # at most one


def get_encoder(context: TaskContext) -> Encoder:
    """Return the encoder of this process, and create it if necessary.

    It is kept for the next tasks, because gigatoken needs a tenth of a second to start and becomes
    faster with use, as it caches words.
    """
    assert context.tokenizer is not None
    files_sha256 = context.tokenizer.files.values()
    key = (str(context.work_dir.path), *files_sha256, context.use_reference, context.num_threads)
    if key not in _encoders:
        _encoders.clear()
        has_eot = context.recipe.eot == "append"
        tokenizer = load_stored_tokenizer(context.work_dir.path, context.tokenizer, has_eot=has_eot)
        fallback = None if context.use_reference else tokenizer.start_fast_backend(num_threads=context.num_threads)
        _encoders[key] = Encoder(context.recipe, tokenizer, fallback)
    return _encoders[key]
