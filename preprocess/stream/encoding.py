"""Documents → ids with control tokens around them, a megabyte of text at a time, each token's place in the corpus known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from preprocess.documents import text_bytes
from preprocess.errors import FolioError
from preprocess.shards.format import CONTROL_FIELDS, format_control_token
from preprocess.stages.encode import BackendMismatch, SpotCheck, encode_checked, has_bos, has_eot, surround
from preprocess.stream.corpus import StreamCorpus
from preprocess.stream.reading import Cursor, Selected

CHUNK_BYTES = 1 << 20  # so that the first block does not wait for the 8 MB of a batch, where the reference does 5 MB/s


@dataclass(frozen=True)
class Chunk:
    """The ids of consecutive documents."""

    ids: np.ndarray  # (N,) of the stream's dtype
    ends: np.ndarray  # (D,) int64, exclusive, of each document in them
    selected: Selected
    first: int  # number of the first of the D documents among the selected
    text_bytes: int

    def cursor(self, place: int) -> Cursor:
        """The place behind the first `place` ids, 1 or more: in the document that the last of them is of, which may be its end."""
        document = int(np.searchsorted(self.ends, place))
        start = int(self.ends[document - 1]) if document else 0
        return self.selected.cursor(self.first + document, place - start)


class ChunkEncoder:
    """Encodes as builds do: with the fast engine, on a sample compared with the reference."""

    def __init__(self, corpus: StreamCorpus) -> None:
        self._corpus, self._tokenizer = corpus, corpus.tokenizer
        self._check = SpotCheck(corpus.recipe.seed)
        eot_id = corpus.tokenizer.eot_id if has_eot(corpus.recipe, corpus.tokenizer) else None
        self._back = -1 if eot_id is None else eot_id

    def encode(self, selected: Selected) -> Iterator[Chunk]:
        """All of `selected`, in order. Raises FolioError where the engines differ: blocks given out cannot be taken back."""
        sizes = text_bytes(selected.batch.column("text"))
        group = np.cumsum(sizes) // CHUNK_BYTES
        boundaries = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(sizes)]
        for first, last in itertools.pairwise(boundaries):
            yield self._encode(selected, first, last, sizes[first:last])

    def _encode(self, selected: Selected, first: int, last: int, sizes: np.ndarray) -> Chunk:
        texts = selected.batch.column("text").slice(first, last - first)
        sample = np.empty(0, np.int64)
        if self._tokenizer.has_fast_backend:
            sample = self._check.rows(selected.hashes[first:last], sizes)
        try:
            ids, ends = encode_checked(self._tokenizer, texts, sample)
        except BackendMismatch as e:
            cure = "begin anew with open_corpus(…, use_reference=True), or train on a build, which changes to the reference by itself"
            raise FolioError(f"{e}, and blocks were given out; {cure}") from e
        front = np.tile(self._front(selected), (last - first, 1))
        ids, ends = surround(ids, ends, front, np.full((last - first, 1), self._back, np.int64))
        return Chunk(ids.astype(self._corpus.dtype, copy=False), ends, selected, first, int(sizes.sum()))

    def _front(self, selected: Selected) -> np.ndarray:
        """(1 + F,) ids in front of each document, −1 for none: as open_corpus has seen to, a file's documents have all the same."""
        recipe, tokenizer = self._corpus.recipe, self._tokenizer
        front = [tokenizer.bos_id if has_bos(recipe, tokenizer) and tokenizer.bos_id is not None else -1]
        for field in CONTROL_FIELDS if recipe.authors else ():
            value = selected.batch.column(field)[0].as_py()
            front.append(-1 if value is None else self._corpus.control_ids[format_control_token(field, value)])
        return np.array(front, np.int64)
