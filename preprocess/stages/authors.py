"""Control tokens of authors, cities and years: their spelling, their ids, and each document's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from preprocess.errors import FolioError
from preprocess.shards.format import CONTROL_FIELDS, spell_control_token


def assign_ids(table: pa.Table, first_id: int, taken: Mapping[str, int]) -> tuple[dict[str, int], np.ndarray]:
    """Ids by first appearance among the documents of `table`; within a document: author, city, year.

    Returns spelling → id, ids counting from `first_id`, and each document's ids: (D, 3) int64, −1 where it has none.
    Raises FolioError for two names that would be spelled alike, or as one of `taken` is.
    """
    found: list[tuple[int, int, int, str]] = []  # first row, field, code, spelling
    codes = np.full((table.num_rows, len(CONTROL_FIELDS)), -1, np.int64)
    for f, field in enumerate(CONTROL_FIELDS):
        encoded = table.column(field).combine_chunks().dictionary_encode()
        codes[:, f] = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        seen, first_row = np.unique(codes[:, f], return_index=True)
        for code, row in zip(seen.tolist(), first_row.tolist(), strict=True):
            if code >= 0:
                found.append((row, f, code, spell_control_token(field, encoded.dictionary[code].as_py())))
    found.sort()
    ids = _number([spelling for *_, spelling in found], first_id, taken)
    lookup = [np.full(int(codes[:, f].max(initial=-1)) + 2, -1, np.int64) for f in range(len(CONTROL_FIELDS))]
    for _, f, code, spelling in found:
        lookup[f][code] = ids[spelling]
    # A missing value's code, −1, picks the last entry of its table, which stays −1.
    return ids, np.stack([lookup[f][codes[:, f]] for f in range(len(CONTROL_FIELDS))], axis=1)


def _number(spellings: list[str], first_id: int, taken: Mapping[str, int]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for spelling in spellings:
        if spelling in ids or spelling in taken:
            raise FolioError(f"two control tokens would be spelled {spelling!r}; rename one of the two in the source")
        ids[spelling] = first_id + len(ids)
    return ids
