"""A span of a source → its cleaned documents, batch by batch, with what is known of their sides of the split."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.documents import HELD_OUT, TRAIN, UNKNOWN, VAL, make_batch, replace_column
from preprocess.errors import FolioError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.inputs.synthetic import generate_pairs
from preprocess.readers import read_span
from preprocess.readers.records import Rejects
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import CONTROL_FIELDS
from preprocess.stages.clean import clean
from preprocess.stages.filters import within_bounds
from preprocess.stages.make_documents import DocumentMaker
from preprocess.stages.split import contiguous_cut, cut_document

Documents = Iterator[tuple[pa.RecordBatch, np.ndarray]]  # SCHEMA, and (D,) int8 of the sides that work.py names

PAIRS_PER_BATCH = 4096
SIDES = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "dev": VAL, "test": HELD_OUT}


def documents_of(source: InputFile, span: Span, recipe: Recipe, rejects: Rejects, cleaned: Counter[str]) -> Documents:
    """Read, cleaned, cut, bounded: all documents of `span` that hold text. `rejects` counts what went, `cleaned` what rules changed."""
    if source.format == "synthetic":
        batches = _cleaned(_synthetic(recipe), recipe, cleaned)
        rejects.num_positions = 2 * recipe.num_pairs
    elif recipe.split == "contiguous":
        batches = _contiguous(source, span, recipe, rejects, cleaned)
    else:
        batches = _cleaned(_read(source, span, recipe, rejects), recipe, cleaned)
        if recipe.document == "passage" and source.format == "text":
            batches = _passages(batches, recipe, None, rejects)
    for batch, sides in batches:
        keep, counts = within_bounds(batch.column("text"), recipe.min_characters, recipe.max_characters)
        rejects.counts.update(counts)
        yield (batch, sides) if keep.all() else (batch.filter(pa.array(keep)), sides[keep])


def _cleaned(batches: Documents, recipe: Recipe, cleaned: Counter[str]) -> Documents:
    for batch, sides in batches:
        batch, counts = clean(batch, recipe.clean)
        cleaned.update(counts)
        yield batch, sides


def _read(source: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Documents:
    maker = DocumentMaker(source, recipe, rejects)
    for records in read_span(source, span, recipe, rejects):
        batch, names = maker.make(records)
        yield (
            batch,
            _sides(names, batch.num_rows, source)
            if recipe.split == "given"
            else np.full(batch.num_rows, UNKNOWN, np.int8),
        )


def _sides(names: pa.Array | None, num_documents: int, source: InputFile) -> np.ndarray:
    """The side that each name of a split stands for."""
    if names is None:
        raise FolioError(
            f"{source.path} says nothing of the split; name a split_column that it has, or a group (?P<split>…) in name_pattern"
        )
    encoded = names.dictionary_encode()
    for name in encoded.dictionary.to_pylist():
        if name not in SIDES:
            raise FolioError(f"{source.path} gives the split {name!r}, wanted one of {', '.join(SIDES)}; rename it")
    if encoded.null_count:
        raise FolioError(
            f"{source.path} gives no split for {encoded.null_count:,} documents; fill it in, or choose another split"
        )
    lookup = np.array([SIDES[name] for name in encoded.dictionary.to_pylist()], np.int8)
    return lookup[encoded.indices.to_numpy()] if num_documents else np.empty(0, np.int8)


def _passages(batches: Documents, recipe: Recipe, boundary: int | None, rejects: Rejects) -> Documents:
    """Documents cut into passages where the recipe asks for it, and at `boundary`, the number of characters that train, where given."""
    size = recipe.passage_characters if recipe.document == "passage" else None
    position = consumed = 0
    for batch, sides in batches:
        for row in range(batch.num_rows):
            spans, in_val = cut_document(
                batch.slice(row, 1), boundary=None if boundary is None else boundary - consumed, passage_characters=size
            )
            numbers = pa.array(np.arange(position, position + spans.num_rows), pa.uint64())
            position += spans.num_rows
            rejects.num_positions = position
            consumed += _num_characters(batch.slice(row, 1)) if boundary is not None else 0
            side = (
                np.where(in_val, VAL, TRAIN).astype(np.int8)
                if boundary is not None
                else np.repeat(sides[row : row + 1], spans.num_rows)
            )
            yield replace_column(spans, "position", numbers), side


def _num_characters(batch: pa.RecordBatch) -> int:
    return pc.sum(pc.utf8_length(batch.column("text"))).as_py() or 0


def _contiguous(source: InputFile, span: Span, recipe: Recipe, rejects: Rejects, cleaned: Counter[str]) -> Documents:
    """The file read twice: its share of characters is known only when all of it is cleaned, and it may not fit into memory."""
    unused = Rejects(None)
    first = _cleaned(_read(source, span, recipe, unused), recipe, Counter())
    boundary = contiguous_cut(sum(_num_characters(batch) for batch, _ in first), recipe.val_fraction)
    yield from _passages(_cleaned(_read(source, span, recipe, rejects), recipe, cleaned), recipe, boundary, rejects)


def _synthetic(recipe: Recipe) -> Documents:
    pairs = generate_pairs(recipe.num_pairs, seed=recipe.seed)
    while chunk := list(itertools.islice(pairs, PAIRS_PER_BATCH)):
        yield _pair_batch(chunk), np.full(2 * len(chunk), UNKNOWN, np.int8)


def _pair_batch(pairs: list[Any]) -> pa.RecordBatch:
    """Both sides of each pair, English first, as documents of one group."""
    columns: dict[str, Any] = {
        "text": [text for pair in pairs for text in (pair.en, pair.ru)],
        "lang": ["en", "ru"] * len(pairs),
        "position": [2 * pair.number + side for pair in pairs for side in (0, 1)],
        "group": [str(pair.number) for pair in pairs for _ in (0, 1)],
    }
    for field in CONTROL_FIELDS:
        columns[field] = [getattr(pair, field) for pair in pairs for _ in (0, 1)]
    return make_batch({**columns, "source": 0}, 2 * len(pairs))
