"""The work on one partition, wherever it runs: read, clean, fingerprint and, where the tokenizer is known, encode.

What comes out lies in the work folder: a table of documents, and their ids or else their text.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.build.build_log import peak_memory_bytes
from preprocess.build.work_dir import DOCUMENT, LENGTH, WorkFolder
from preprocess.documents import text_buffers, text_bytes
from preprocess.inputs.input_files import InputFile
from preprocess.readers.partitions import Partition
from preprocess.readers.records import Rejects
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import CONTROL_FIELDS, token_dtype
from preprocess.stages.dedup import content_hashes, groups_of
from preprocess.stages.encode import SpotCheck, encode_checked, has_bos, has_eot, surround
from preprocess.stages.pipeline import documents_of
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.characters import NUM_CODE_POINTS, code_points
from preprocess.tokenizers.interface import Tokenizer
from preprocess.tokenizers.sentencepiece_bpe import SPACE

LISTED = ("author", "city", "lang")


@dataclass(frozen=True)
class Job:
    """All that a task needs to know, small enough to travel to another process."""

    recipe: Recipe
    sources: Mapping[int, InputFile]  # by number: those that the task reads, of perhaps a million
    work: WorkFolder
    # Where it is known, `tokenizer` and `eot_id` as the manifest has them; its files lie in the work folder.
    tokenizer: dict[str, Any] | None
    use_reference: bool = False  # encode with the reference library even where there is a faster one
    num_threads: int = 1  # for the encoding of one batch


def prepare_partition(job: Job, partition: Partition) -> dict[str, Any]:
    """Do all of it, and return the receipt."""
    begin = time.perf_counter()
    writer = _Writer(job, partition.number)
    refused = job.work.file(partition.number, "refused")
    refused.unlink(missing_ok=True)
    rejects, cleaned, num_positions = Rejects(refused), Counter[str](), []
    with job.work.writing(partition.number, *writer.outputs) as files:
        writer.open(files)
        for span in partition.spans:
            rejects.num_positions = 0
            for batch, sides in documents_of(job.sources[span.source], span, job.recipe, rejects, cleaned):
                if batch.num_rows:
                    rejects.counts["empty"] += writer.write(batch, sides)
            num_positions.append([span.source, rejects.num_positions])
        writer.close()
        rejects.flush()
    fields = {
        "num_positions": num_positions,
        "dropped": dict(rejects.counts),
        "cleaned": dict(cleaned),
        "elapsed_s": round(time.perf_counter() - begin, 3),
        **writer.fields(),
    }
    return job.work.save_receipt(partition.number, "prepare", fields, files)


class _Writer:
    """Documents of one partition → its files."""

    def __init__(self, job: Job, number: int) -> None:
        self._job, self._encoder = job, encoder_of(job) if job.tokenizer is not None else None
        self.outputs = ("docs", "ids", "lengths") if self._encoder else ("docs", "text")
        self._lists: dict[str, dict[str, int]] = {name: {} for name in LISTED}
        self._seen = np.zeros(NUM_CODE_POINTS, bool) if job.recipe.tokenizer == "char" else None
        self._num_documents = self._text_bytes = 0

    def open(self, files: dict[str, Any]) -> None:
        self._files = files
        if not self._encoder:
            schema = pa.schema([("text", pa.large_string())])
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._spill = pa.ipc.new_stream(pa.PythonFile(files["text"], "w"), schema, options=options)

    def write(self, batch: pa.RecordBatch, sides: np.ndarray) -> int:
        """Take a batch; returns how many of its documents were empty and left out."""
        sizes = text_bytes(batch.column("text"))
        num_empty = int(np.count_nonzero(sizes == 0))
        if num_empty:
            full = sizes > 0
            batch, sides, sizes = batch.filter(pa.array(full)), sides[full], sizes[full]
        texts = batch.column("text")
        documents = self._table(batch, sides, sizes)
        self._files["docs"].write(documents)
        self._num_documents += len(documents)
        self._text_bytes += int(sizes.sum())
        if self._seen is not None:
            self._seen[code_points(text_buffers(texts)[0])] = True
        if self._encoder:
            self._encoder.encode(texts, documents, self._files)
        else:
            self._spill.write_batch(pa.record_batch([texts], ["text"]))
        return num_empty

    def _table(self, batch: pa.RecordBatch, sides: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        documents = np.empty(batch.num_rows, DOCUMENT)
        hashes = content_hashes(batch.column("text"))
        documents["hash"], documents["side"], documents["text_bytes"] = hashes, sides, sizes
        documents["group"] = groups_of(batch, hashes, self._job.recipe)
        documents["source"] = batch.column("source").to_numpy()
        documents["position"] = batch.column("position").to_numpy()
        documents["year"] = batch.column("year").fill_null(-1).to_numpy()
        for name in LISTED:
            documents[name] = self._numbers(name, batch.column(name))
        documents["has_u2581"] = False
        if self._job.recipe.tokenizer == "sentencepiece":
            documents["has_u2581"] = pc.match_substring(batch.column("text"), SPACE).to_numpy(zero_copy_only=False)
        return documents

    def _numbers(self, name: str, column: pa.StringArray) -> np.ndarray:
        """Each value's number in the partition's list of values, −1 for null."""
        if column.null_count == len(column):
            return np.full(len(column), -1, np.int32)
        known = self._lists[name]
        encoded = column.dictionary_encode()
        lookup = np.array(
            [*(known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()), -1], np.int32
        )
        return lookup[encoded.indices.fill_null(len(lookup) - 1).to_numpy(zero_copy_only=False)]

    def close(self) -> None:
        if not self._encoder:
            self._spill.close()

    def fields(self) -> dict[str, Any]:
        """What the receipt says of them."""
        return {
            "num_documents": self._num_documents,
            "text_bytes": self._text_bytes,
            "lists": {name: list(known) for name, known in self._lists.items()},
            "alphabet": np.flatnonzero(self._seen).tolist() if self._seen is not None else None,
            **(self._encoder.notes() if self._encoder else {}),
        }


def encode_partition(job: Job, number: int) -> dict[str, Any]:
    """The ids of a partition whose text was spilled, now that there is a tokenizer; returns the receipt."""
    begin = time.perf_counter()
    encoder, documents, first = encoder_of(job), job.work.documents(number), 0
    with job.work.writing(number, "ids", "lengths") as files:
        for texts in spilled_texts(job.work, number):
            encoder.encode(texts, documents[first : first + len(texts)], files)
            first += len(texts)
    fields = {"elapsed_s": round(time.perf_counter() - begin, 3), **encoder.notes()}
    return job.work.save_receipt(number, "encode", fields, files)


def spilled_texts(work: WorkFolder, number: int) -> Iterator[pa.LargeStringArray]:
    """The texts of a partition's documents, batch by batch."""
    with pa.memory_map(str(work.file(number, "text"))) as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            yield batch.column(0)


_encoders: dict[tuple[Any, ...], Encoder] = {}  # of this process; one at a time


def encoder_of(job: Job) -> Encoder:
    """The encoder of a job: one a process, since its engine learns as it goes and takes a tenth of a second to start."""
    assert job.tokenizer is not None
    key = (str(job.work.path), *job.tokenizer["tokenizer"]["files"].values(), job.use_reference, job.num_threads)
    if key not in _encoders:
        _encoders.clear()
        _encoders[key] = Encoder(job)
    return _encoders[key]


class Encoder:
    """Texts → stored documents: ids with a place in front for each control token, checked on a sample against the reference."""

    def __init__(self, job: Job) -> None:
        assert job.tokenizer is not None
        self.tokenizer: Tokenizer = load_tokenizer(job.work.path, job.tokenizer)
        self._recipe = job.recipe
        self._why_not = None if job.use_reference else self.tokenizer.start_fast_backend(num_threads=job.num_threads)
        self._dtype = np.dtype(token_dtype(self.tokenizer.vocab_size))
        self._check = SpotCheck(job.recipe.seed)

    def notes(self) -> dict[str, Any]:
        """What the receipt says of how it was encoded."""
        return {
            "engine": self.tokenizer.engine,
            "backend_fallback": self._why_not,
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def encode(self, texts: pa.LargeStringArray, documents: np.ndarray, files: dict[str, Any]) -> None:
        """Append the ids and lengths of `texts`, whose rows of the table are `documents`. Raises BackendMismatch."""
        sample = (
            self._check.rows(documents["hash"], documents["text_bytes"])
            if self.tokenizer.has_fast_backend
            else np.empty(0, np.int64)
        )
        ids, ends = encode_checked(self.tokenizer, texts, sample)
        back = np.full((len(ends), 1), self.tokenizer.eot_id if has_eot(self._recipe, self.tokenizer) else -1, np.int64)
        ids, ends = surround(ids, ends, control_slots(documents, self._recipe, self.tokenizer), back)
        files["ids"].write(ids.astype(self._dtype, copy=False))
        files["lengths"].write(np.diff(ends, prepend=0).astype(LENGTH))


def control_slots(documents: np.ndarray, recipe: Recipe, tokenizer: Tokenizer) -> np.ndarray:
    """(D, F) ids for `surround`: the begin-of-text id, and 0 wherever an id will be known later, −1 for nothing."""
    columns = [np.full(len(documents), tokenizer.bos_id if has_bos(recipe, tokenizer) else -1, np.int64)]
    for name in CONTROL_FIELDS if recipe.authors else ():
        columns.append(np.where(documents[name] >= 0, 0, -1))
    return np.stack(columns, axis=1)
