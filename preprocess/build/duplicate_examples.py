"""Examples of documents that were dropped because an earlier one is equal or nearly equal.

Their numbers are found while duplicates are dropped (duplicate_pairs.py), and their texts are decoded from
the prepared ids when the build is published. At most MAX_IDS ids of a document are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.build.duplicate_pairs import Pair
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.shard_layout import compute_position_offsets
from preprocess.build.work_dir import LENGTH_DTYPE, Chunk
from preprocess.errors import printable
from preprocess.inputs.input_files import InputFile
from preprocess.shards.files import JsonObject
from preprocess.shards.format import CONTROL_FIELDS, token_dtype
from preprocess.stages.encode import has_bos
from preprocess.stages.encode_chats import count_ids

MAX_IDS = 20_000  # of a document, in which the first difference is looked for
MAX_TEXT_CHARACTERS = 400
SHARED_CHARACTERS = 100  # that are shown before the first difference


def describe_duplicates(corpus: PreparedCorpus, input_files: Sequence[InputFile]) -> JsonObject:
    """Return the entry `duplicate_examples` of stats.json, or an empty object if there are no duplicates.

    Of each pair it has the files and the numbers of the documents, and their texts from shortly before the first
    difference. Equal documents have one text.
    """
    reader = _DocumentReader(corpus, input_files)
    described = {
        reason: [reader.describe(pair) for pair in pairs]
        for reason, pairs in corpus.assignment.duplicate_pairs.items()
        if pairs
    }
    return {"duplicate_examples": described} if described else {}


class _DocumentReader:
    """Finds and decodes documents, which are numbered across partitions."""

    def __init__(self, corpus: PreparedCorpus, input_files: Sequence[InputFile]) -> None:
        self._corpus, self._input_files = corpus, input_files
        self._first_documents = np.cumsum([0, *corpus.assignment.num_documents])  # of each partition
        self._offsets = compute_position_offsets([receipt.num_positions for receipt in corpus.receipts])
        self._dtype = np.dtype(token_dtype(count_ids(corpus.recipe, corpus.tokenizer)))

    def describe(self, pair: Pair) -> JsonObject:
        """Return the JSON object of a pair."""
        kept, dropped = self._read_text(pair.kept), self._read_text(pair.dropped)
        differences = (i for i, (a, b) in enumerate(zip(kept, dropped, strict=False)) if a != b)
        first_difference = next(differences, min(len(kept), len(dropped)))
        begin = max(first_difference - SHARED_CHARACTERS, 0) if kept != dropped else 0
        return {
            "kept": {**self._name(pair.kept), "text": _cut(kept, begin)},
            "dropped": {**self._name(pair.dropped), **({} if kept == dropped else {"text": _cut(dropped, begin)})},
        }

    def _locate(self, document: int) -> tuple[int, int]:
        """Return the partition of a document, and its row in the partition's tables."""
        partition = int(np.searchsorted(self._first_documents, document, "right")) - 1
        return partition, document - int(self._first_documents[partition])

    def _read_record(self, document: int) -> np.ndarray:
        partition, row = self._locate(document)
        return self._corpus.work_dir.map_documents(Chunk(partition, row, row + 1))[0]

    def _name(self, document: int) -> JsonObject:
        record = self._read_record(document)
        first_file, offsets = self._offsets[self._locate(document)[0]]
        source = int(record["source"])
        position = int(record["position"] + offsets[source - first_file])
        return {"file": self._input_files[source].name, "document": position}

    def _read_text(self, document: int) -> str:
        """Return the beginning of the text of a document, without control tokens."""
        corpus, (partition, row) = self._corpus, self._locate(document)
        lengths = np.memmap(corpus.work_dir.file(partition, "lengths"), LENGTH_DTYPE, "r")
        record, tokenizer = self._read_record(document), corpus.tokenizer
        num_leading = int(has_bos(corpus.recipe, tokenizer))
        num_leading += sum(int(record[name]) >= 0 for name in CONTROL_FIELDS) if corpus.recipe.authors else 0
        # Equal documents may have different authors, and their texts must be cut at the same id.
        begin, num_ids = int(lengths[:row].sum(dtype=np.int64)), min(int(lengths[row]), num_leading + MAX_IDS)
        path = corpus.work_dir.file(partition, "ids")
        ids = np.fromfile(path, self._dtype, num_ids, offset=begin * self._dtype.itemsize)
        ids = ids[num_leading:]
        is_text = (ids < tokenizer.vocab_size) & ~np.isin(ids, list(tokenizer.special_tokens.values()))
        return tokenizer.decode_bytes(ids[is_text]).decode("utf-8", "replace")


def _cut(text: str, begin: int) -> str:
    end = begin + MAX_TEXT_CHARACTERS
    return printable(("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else ""))
