"""Encode documents to ids with control tokens around them, and find the cursor of each token.

A batch of documents has about 8 MB of text. It is encoded in chunks of about one megabyte, so that
the first block does not wait for the whole batch (the reference backend encodes 5 MB/s). The fast
backend is checked against the reference on a few documents, as in a build. If they differ, a build
starts again with the reference. A stream has already returned blocks, so it raises an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from preprocess.chats.marked_text import count_plain_bytes
from preprocess.errors import FolioError
from preprocess.shards.format import CONTROL_FIELDS, format_control_token
from preprocess.stages.encode import BackendMismatch, SpotCheck, add_control_tokens, encode_group, has_bos, has_eot
from preprocess.stages.encode_chats import TurnIds, choose_turns
from preprocess.stages.slices import iter_groups, slice_texts
from preprocess.stream.corpus import StreamCorpus
from preprocess.stream.reading import Cursor, SelectedDocuments
from preprocess.tokenizers.interface import Encoded
from preprocess.tokenizers.lost_characters import LossCounter

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """The ids of D consecutive documents, control tokens included."""

    ids: np.ndarray  # (N,) of the stream's dtype
    ends: np.ndarray  # (D,) int64, exclusive end of each document in `ids`
    selected: SelectedDocuments
    first: int  # index in `selected` of the first of the D documents
    text_bytes: int  # of the D documents

    def cursor(self, num_ids: int) -> Cursor:
        """Return the position after the first `num_ids` >= 1 ids.

        It is in the document that contains the last of these ids, possibly at its end.
        """
        document = int(np.searchsorted(self.ends, num_ids))
        start = int(self.ends[document - 1]) if document else 0
        return self.selected.cursor(self.first + document, num_ids - start)


class ChunkEncoder:
    """An encoder that uses the fast backend, if there is one, and checks some documents against the reference."""

    def __init__(self, corpus: StreamCorpus) -> None:
        self._corpus, self._tokenizer = corpus, corpus.tokenizer
        self._turn_ids = TurnIds(corpus.recipe, corpus.tokenizer)
        self._check = SpotCheck(corpus.recipe.seed)
        # Until the first character is lost, which is logged once.
        self._loss_counter = LossCounter(self._tokenizer) if self._tokenizer.can_lose_characters else None
        eot_id = corpus.tokenizer.eot_id if has_eot(corpus.recipe, corpus.tokenizer) else None
        self._trailing_id = -1 if eot_id is None else eot_id

    def encode(self, selected: SelectedDocuments) -> Iterator[Chunk]:
        """Yield the chunks of `selected`, in order.

        Raises FolioError if the ids of the two backends differ, or if the fast backend fails.
        """
        sizes = count_plain_bytes(selected.batch.column("text"), has_chats=self._turn_ids.has_chats)
        chunk_of_document = np.cumsum(sizes) // CHUNK_BYTES
        boundaries = [0, *(np.flatnonzero(np.diff(chunk_of_document)) + 1).tolist(), len(sizes)]
        for first, last in itertools.pairwise(boundaries):
            yield self._encode(selected, first, last, sizes[first:last])

    def _encode(self, selected: SelectedDocuments, first: int, last: int, sizes: np.ndarray) -> Chunk:
        turns = self._turn_ids.split(selected.batch.column("text").slice(first, last - first))
        rows_to_check = np.empty(0, np.int64)
        if self._tokenizer.has_fast_backend:
            hashes = selected.hashes[first:last]
            rows_to_check = choose_turns(turns, self._check.choose_rows(hashes, sizes), hashes)
        try:
            ids, ends = self._encode_texts(turns.texts, rows_to_check)
        except BackendMismatch as e:
            raise FolioError(
                f"{e}, and blocks were already returned; open the corpus again with "
                "open_corpus(…, use_reference=True), or train on a build, which switches to the reference by itself"
            ) from e
        of_documents = self._leading_ids(selected.batch.slice(first, last - first))
        leading = np.full((len(turns.texts), of_documents.shape[1]), -1, np.int64)  # of the turns
        leading[turns.firsts[:-1]] = of_documents
        trailing = np.full((len(turns.texts), 1), -1, np.int64)
        trailing[turns.firsts[1:] - 1] = self._trailing_id
        leading, trailing = self._turn_ids.add_to(leading, trailing, turns.kinds, np.arange(len(turns.texts) + 1))
        ids, ends = add_control_tokens(ids, ends, leading, trailing)
        return Chunk(ids, ends[turns.firsts[1:] - 1], selected, first, int(sizes.sum()))

    def _encode_texts(self, texts: pa.LargeStringArray, rows_to_check: np.ndarray) -> Encoded:
        """Encode D texts in the dtype of the stream. Long ones are encoded in slices, as in a build."""
        slices, first_slices = slice_texts(texts, self._tokenizer.cuts)
        is_checked = np.zeros(len(slices), bool)
        is_checked[first_slices[rows_to_check]] = True
        parts, lengths = [np.empty(0, self._corpus.dtype)], np.zeros(len(slices), np.int64)
        for start, stop in iter_groups(slices):
            group = slices.slice(start, stop - start)
            for ids, ends in encode_group(self._tokenizer, group, is_checked[start:stop], self._loss_counter):
                # Convert each part: a document may have 64 million ids of 4 bytes.
                parts.append(ids.astype(self._corpus.dtype, copy=False))
                lengths[start:stop] += np.diff(ends, prepend=0)
            self._log_lost_characters()
        return np.concatenate(parts), np.cumsum(lengths)[first_slices[1:] - 1]

    def _log_lost_characters(self) -> None:
        if self._loss_counter is not None and (line := self._loss_counter.measure().describe()):
            self._corpus.log(f"{line} (so far; the stream does not count further)")
            self._loss_counter = None

    def _leading_ids(self, batch: pa.RecordBatch) -> np.ndarray:
        """Return the ids to insert before each of D documents, (D, 1 + F) int64; -1 means no id."""
        recipe, tokenizer = self._corpus.recipe, self._tokenizer
        bos_id = tokenizer.bos_id if has_bos(recipe, tokenizer) and tokenizer.bos_id is not None else -1
        columns = [np.full(batch.num_rows, bos_id, np.int64)]
        for field in CONTROL_FIELDS if recipe.authors else ():
            encoded = batch.column(field).dictionary_encode()
            names = [format_control_token(field, value) for value in encoded.dictionary.to_pylist()]
            ids = np.array([*(self._corpus.control_ids[name] for name in names), -1], np.int64)  # the last is for null
            columns.append(ids[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)])
        return np.stack(columns, axis=1)
