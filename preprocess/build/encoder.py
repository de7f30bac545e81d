"""Encode documents with their control tokens, and write the ids to files of the work directory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from preprocess.build.build_log import get_peak_memory_bytes
from preprocess.build.receipts import EncodingReport
from preprocess.build.work_dir import LENGTH_DTYPE, HashedFile
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import CONTROL_FIELDS, token_dtype
from preprocess.stages.encode import SpotCheck, add_control_tokens, encode_group, has_bos, has_eot
from preprocess.stages.encode_chats import TurnIds, choose_turns, count_ids, make_loss_mask
from preprocess.stages.slices import iter_groups, slice_texts
from preprocess.tokenizers.interface import Encoded, Tokenizer
from preprocess.tokenizers.lost_characters import CharacterLoss, LossCounter


class Encoder:
    """Encodes documents in groups of slices, and checks some of them with the reference backend."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, backend_fallback: str | None) -> None:
        """`backend_fallback`: why the fast backend did not start; None if it did or there is none."""
        self._recipe, self._tokenizer, self._backend_fallback = recipe, tokenizer, backend_fallback
        self._dtype = np.dtype(token_dtype(count_ids(recipe, tokenizer)))
        self._turn_ids = TurnIds(recipe, tokenizer)
        self._spot_check = SpotCheck(recipe.seed)
        self._loss_counter = LossCounter(tokenizer) if tokenizer.can_lose_characters else None

    def report(self) -> EncodingReport:
        """Return how the documents were encoded, for the receipt."""
        return EncodingReport(self._tokenizer.backend, self._backend_fallback, get_peak_memory_bytes())

    def start_partition(self) -> None:
        """Begin to count the lost characters of another partition."""
        if self._loss_counter is not None:
            self._loss_counter.reset()

    def measure_loss(self) -> CharacterLoss | None:
        """Return the characters that the tokenizer lost in this partition, or None if it cannot lose any."""
        return None if self._loss_counter is None else self._loss_counter.measure()

    def encode(self, texts: pa.LargeStringArray, documents: np.ndarray, files: Mapping[str, HashedFile]) -> None:
        """Append the ids and lengths of D texts to `files["ids"]` and `files["lengths"]`.

        If there are chats, the loss mask is appended to `files["mask"]`, a byte for each token.
        `documents`: the table of the texts, (D,) of DOCUMENT_DTYPE. Raises BackendMismatch if the
        fast backend fails or its ids differ from the reference's.
        """
        if not len(texts):
            return
        turns = self._turn_ids.split(texts)
        slices, first_slices = slice_texts(turns.texts, self._tokenizer.cuts)  # S slices
        of_documents = first_slices[turns.firsts]  # (D + 1,)
        is_checked = np.zeros(len(slices), bool)
        if self._tokenizer.has_fast_backend:
            rows_to_check = self._spot_check.choose_rows(documents["hash"], documents["text_bytes"])
            is_checked[first_slices[choose_turns(turns, rows_to_check, documents["hash"])]] = True
        leading, trailing = self._make_control_ids(documents, of_documents)
        leading, trailing = self._turn_ids.add_to(leading, trailing, turns.kinds, first_slices)
        lengths = np.empty(len(slices), np.int64)  # in tokens
        for start, stop in iter_groups(slices):
            rows = slice(start, stop)
            group = slices.slice(start, stop - start)
            parts = encode_group(self._tokenizer, group, is_checked[rows], self._loss_counter)
            if len(group) == 1:  # it may be long
                lengths[start] = self._write_parts(files["ids"], parts, leading[start], trailing[start])
                continue
            [(ids, ends)] = parts
            ids = ids.astype(self._dtype, copy=False)
            ids, ends = add_control_tokens(ids, ends, leading[rows], trailing[rows])
            files["ids"].write(ids)
            lengths[rows] = np.diff(ends, prepend=0)
        files["lengths"].write(np.add.reduceat(lengths, of_documents[:-1]).astype(LENGTH_DTYPE))
        if self._turn_ids.has_chats:
            kinds = np.repeat(turns.kinds, np.diff(first_slices))  # of the slices
            files["mask"].write(make_loss_mask(kinds, lengths, leading, trailing))

    def _write_parts(
        self, file: HashedFile, parts: Iterator[Encoded], leading: np.ndarray, trailing: np.ndarray
    ) -> int:
        """Write the ids of one slice between its control ids, (F,) and (1,), and return the number of all ids."""
        num_ids = 0
        for ids in itertools.chain([leading[leading >= 0]], (ids for ids, _ in parts), [trailing[trailing >= 0]]):
            file.write(ids.astype(self._dtype))
            num_ids += len(ids)
        return num_ids

    def _make_control_ids(self, documents: np.ndarray, first_slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the control ids before and after each of S slices, (S, F) and (S, 1) int64.

        -1 means no id. Only the first slice of a document has ids before it, and only the last one
        has an id after it. `first_slices`: of each document, with S at the end, (D + 1,).
        """
        of_documents = self._make_leading_ids(documents)
        leading = np.full((first_slices[-1], of_documents.shape[1]), -1, np.int64)
        trailing = np.full((first_slices[-1], 1), -1, np.int64)
        leading[first_slices[:-1]] = of_documents
        if has_eot(self._recipe, self._tokenizer):
            trailing[first_slices[1:] - 1] = self._tokenizer.eot_id
        return leading, trailing

    def _make_leading_ids(self, documents: np.ndarray) -> np.ndarray:
        """Return the control ids before each document, (D, F) int64; -1 means no id.

        The ids of authors, cities and years are not known yet; they are 0 here.
        """
        bos_id = self._tokenizer.bos_id if has_bos(self._recipe, self._tokenizer) else -1
        columns = [np.full(len(documents), bos_id, np.int64)]
        for name in CONTROL_FIELDS if self._recipe.authors else ():
            columns.append(np.where(documents[name] >= 0, 0, -1))
        return np.stack(columns, axis=1)
