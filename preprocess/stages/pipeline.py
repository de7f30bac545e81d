"""Read spans of input files and chain the stages that turn them into cleaned documents.

Documents are yielded in batches, together with the side of the split that each document belongs to.
A random split is decided later (split.py), so its documents have the side UNKNOWN here.

Every batch costs about 1 ms to clean, hash and encode, however small it is, so the documents of
small files are merged into larger batches first. The later stages work on single documents, so the
merge changes no document. What depends on the other documents of a file comes before the merge:
numbering the documents, and cutting a file at a fraction of its characters or into passages.

A batch may be one record of 128 MB. The generators therefore delete a batch before they ask for the
next one; otherwise the loop variable of each would keep it while the next one is read.

Small files whose text is not cut are joined even before their documents are made (joined_files.py).
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.chats.marked_text import get_plain_texts
from preprocess.documents import HELD_OUT, TRAIN, UNKNOWN, VAL, make_batch, replace_column
from preprocess.errors import FolioError, shorten
from preprocess.filters.chain import FilterChain
from preprocess.inputs.input_files import InputFile, Span
from preprocess.inputs.synthetic import generate_pairs
from preprocess.inputs.synthetic_chats import Question, generate_questions
from preprocess.readers import read_span
from preprocess.readers.chat_columns import make_chat_text
from preprocess.readers.joined_files import Source, group_small_files, read_joined
from preprocess.readers.record_blocks import is_grouped_by_position
from preprocess.readers.records import Rejects
from preprocess.readers.reject_reasons import RejectReason
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import CONTROL_FIELDS
from preprocess.stages.clean import clean
from preprocess.stages.decontaminate import CONTAMINATED, Decontaminator
from preprocess.stages.filters import select_by_length
from preprocess.stages.make_documents import DocumentMaker
from preprocess.stages.split import compute_contiguous_cut, cut_document

Documents = Iterator[tuple[pa.RecordBatch, np.ndarray]]  # a batch of SCHEMA, and the documents' sides, (D,) int8

PAIRS_PER_BATCH = 4096
MERGED_BYTES = 4 << 20  # a batch is not merged with others if the result would be larger
DROP_MESSAGES = {
    "too_short": "shorter than min_characters", "too_long": "longer than max_characters",
    "empty": "no text, or none is left by the cleaning rules",
    CONTAMINATED: "contains an evaluation item",
}  # fmt: skip
BY_FILTERS = "by_filters"  # the kind of all documents that filters drop
SIDE_BY_NAME = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "dev": VAL, "test": HELD_OUT}


def read_documents(
    spans: Iterable[Source],
    recipe: Recipe,
    rejects: Rejects,
    cleaned: Counter[str],
    filters: FilterChain | None = None,
) -> Documents:
    """Yield the documents of `spans`: read, cleaned, cut into passages, and filtered.

    `rejects` counts the records and documents that are dropped, and `cleaned` the documents that
    each cleaning rule changed. `filters` are those of the recipe, which count what they do; by
    default they are made here. Raises FolioError if a file cannot be read.
    """
    filters = FilterChain(recipe) if filters is None else filters
    names: dict[int, str] = {}  # of the input files that have been opened
    count_filtered = functools.partial(_count_filtered, rejects, names)
    batches = _merge_small_batches(_read_spans(_note_names(spans, names), recipe, rejects, cleaned))
    if not _cuts_texts(recipe):
        batches = _clean_batches(batches, recipe, cleaned)
    for batch, sides in batches:
        texts = get_plain_texts(batch.column("text"), has_chats=recipe.chat_columns is not None)
        keep, dropped = select_by_length(texts, recipe.min_characters, recipe.max_characters)
        for kind, is_dropped in dropped.items():
            count_dropped(rejects, kind, batch.filter(pa.array(is_dropped)), names)
        del texts
        if not keep.all():
            batch, sides = batch.filter(pa.array(keep)), sides[keep]
        yield filters.apply(batch, sides, count_filtered)
        del batch


def decontaminate(
    documents: Documents, decontaminator: Decontaminator | None, recipe: Recipe, count: Callable[[pa.RecordBatch], None]
) -> Documents:
    """Yield `documents` without those that contain evaluation items, for which `count` is called.

    All are yielded if `decontaminator` is None, or if it only counts.
    """
    for batch, sides in documents:
        if decontaminator is not None:
            texts = get_plain_texts(batch.column("text"), has_chats=recipe.chat_columns is not None)
            is_kept = decontaminator.judge(texts)
            del texts
            if not is_kept.all():
                count(batch.filter(pa.array(~is_kept)))
                batch, sides = batch.filter(pa.array(is_kept)), sides[is_kept]
        yield batch, sides
        del batch


def count_dropped(rejects: Rejects, kind: str, batch: pa.RecordBatch, names: Mapping[int, str]) -> None:
    """Count the documents of `batch`, which the recipe drops. `names`: of the input files, by number."""
    _count_documents(rejects, kind, DROP_MESSAGES[kind], batch, names)


def _count_filtered(rejects: Rejects, names: Mapping[int, str], name: str, reason: str, batch: pa.RecordBatch) -> None:
    """Count the documents of `batch`, which the filter `name` drops."""
    _count_documents(rejects, BY_FILTERS, f"filter {name}: {reason}", batch, names)


def _count_documents(rejects: Rejects, kind: str, reason: str, batch: pa.RecordBatch, names: Mapping[int, str]) -> None:
    if batch.num_rows:
        place = f"document {batch.column('position')[0].as_py()}"
        source = names[batch.column("source")[0].as_py()]
        rejects.count(RejectReason(kind, reason, batch.num_rows, source, place))


def _note_names(spans: Iterable[Source], names: dict[int, str]) -> Iterator[Source]:
    for input_file, span in spans:
        names[input_file.number] = input_file.name
        yield input_file, span


def _read_spans(spans: Iterable[Source], recipe: Recipe, rejects: Rejects, cleaned: Counter[str]) -> Documents:
    """Yield the documents of `spans`. They are cleaned already if the recipe cuts texts, otherwise not yet."""
    if not _cuts_texts(recipe):
        for files in group_small_files(spans):
            joined = _read_joined(files, recipe, rejects) if len(files) > 1 else None
            yield from _read_one_by_one(files, recipe, rejects, cleaned) if joined is None else [joined]
    else:
        yield from _read_one_by_one(spans, recipe, rejects, cleaned)


def _read_joined(files: list[Source], recipe: Recipe, rejects: Rejects) -> tuple[pa.RecordBatch, np.ndarray] | None:
    """Return the documents of small files as one batch, or None if they must be read one by one.

    This is the case if an error is raised, or if a record is rejected or changed.
    """
    input_files, of_joined = [input_file for input_file, _ in files], Rejects(None)
    try:
        records = read_joined(files, recipe, of_joined)
        if records is None:
            return None
        batch, names = DocumentMaker(input_files, recipe, of_joined).make(records)
        sides = _find_sides(batch, names, recipe, input_files[0])
    except (FolioError, OSError):  # reading the file by itself raises it again, after the documents before it
        return None
    if of_joined.counts.keys() - {"filtered"}:
        return None
    rejects.merge(of_joined)
    for (_, span), num_records in zip(files, records.count_by_file(len(files)), strict=True):
        rejects.num_positions = num_records
        rejects.finish_span(span.file_number)
    return batch, sides


def _read_one_by_one(spans: Iterable[Source], recipe: Recipe, rejects: Rejects, cleaned: Counter[str]) -> Documents:
    for input_file, span in spans:
        if input_file.format == "synthetic":
            yield from _generate_synthetic(recipe)
            rejects.num_positions = recipe.num_pairs * (2 if recipe.chat_columns is None else 1)
        elif recipe.split == "contiguous":
            yield from _read_contiguous(input_file, span, recipe, rejects, cleaned)
        elif _cuts_texts(recipe):
            batches = _clean_batches(_read_batches(input_file, span, recipe, rejects), recipe, cleaned)
            yield from (
                _cut_batches(batches, recipe, None, rejects, input_file.name)
                if input_file.format == "text"
                else batches
            )
        else:
            yield from _read_batches(input_file, span, recipe, rejects)
        rejects.finish_span(span.file_number)


def _cuts_texts(recipe: Recipe) -> bool:
    """Return whether text files are cut after they are cleaned."""
    return recipe.split == "contiguous" or recipe.document == "passage"


def _merge_small_batches(batches: Documents) -> Documents:
    """Merge consecutive small batches. Batches without documents are dropped."""
    pending: list[tuple[pa.RecordBatch, np.ndarray]] = []
    pending_bytes = 0
    for batch, sides in batches:
        if not batch.num_rows:
            continue
        num_bytes = batch.get_total_buffer_size()
        if pending_bytes + num_bytes > MERGED_BYTES:
            yield from _merge(pending)
            pending, pending_bytes = [], 0
        pending.append((batch, sides))
        pending_bytes += num_bytes
        del batch
        if pending_bytes > MERGED_BYTES:
            yield from _merge(pending)
            pending, pending_bytes = [], 0
    yield from _merge(pending)


def _merge(batches: list[tuple[pa.RecordBatch, np.ndarray]]) -> Documents:
    """Yield `batches` as one batch. If there are none, yield none."""
    if len(batches) <= 1:
        yield from batches
        return
    table = pa.Table.from_batches([batch for batch, _ in batches]).combine_chunks()
    yield table.to_batches()[0], np.concatenate([sides for _, sides in batches])


def _clean_batches(batches: Documents, recipe: Recipe, cleaned: Counter[str]) -> Documents:
    for batch, sides in batches:
        batch, counts = clean(batch, recipe.clean, has_chats=recipe.chat_columns is not None)
        cleaned.update(counts)
        yield batch, sides
        del batch


def _read_batches(input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects) -> Documents:
    maker = DocumentMaker([input_file], recipe, rejects)
    for records in read_span(input_file, span, recipe, rejects):
        batch, names = maker.make(records)
        sides = _find_sides(batch, names, recipe, input_file)
        del records, names
        yield batch, sides
        del batch
    if is_grouped_by_position(recipe):
        _check_positions(rejects)


def _check_positions(rejects: Rejects) -> None:
    """Raise FolioError if a record was left out without a position, so the positions after it are those of others."""
    if found := rejects.first_unnumbered:
        raise FolioError(
            f"{shorten(found.source)}, {found.place}: a record is left out ({found.reason}), which shifts the "
            "positions by which documents are grouped; correct the record, or choose another --group-by"
        )


def _find_sides(batch: pa.RecordBatch, names: pa.Array | None, recipe: Recipe, input_file: InputFile) -> np.ndarray:
    """Return the side of each document of `batch`, (D,) int8, from the names of their splits if the recipe says so."""
    if recipe.split != "given":
        return np.full(batch.num_rows, UNKNOWN, np.int8)
    if names is None:
        raise FolioError(
            f"{input_file.path} gives no split for its documents; set split_column to one of its columns, "
            "or add a group (?P<split>…) to name_pattern"
        )
    encoded = names.dictionary_encode()
    distinct_names = encoded.dictionary.to_pylist()
    for name in distinct_names:
        if name not in SIDE_BY_NAME:
            raise FolioError(
                f"{input_file.path} contains the split {name!r}, expected one of {', '.join(SIDE_BY_NAME)}; rename it"
            )
    if encoded.null_count:
        raise FolioError(
            f"{input_file.path} gives no split for {encoded.null_count:,} documents; fill in the missing values, "
            "or choose another --split"
        )
    if not len(names):
        return np.empty(0, np.int8)
    return np.array([SIDE_BY_NAME[name] for name in distinct_names], np.int8)[encoded.indices.to_numpy()]


def _cut_batches(batches: Documents, recipe: Recipe, boundary: int | None, rejects: Rejects, source: str) -> Documents:
    """Cut documents at `boundary` and, if the recipe says so, into passages; number the parts.

    `boundary`, if given, is the number of characters, counted over all documents, that are used for
    training. `source`: the name of the input file.
    """
    passage_characters = recipe.passage_characters if recipe.document == "passage" else None
    position = num_characters = 0  # of the parts, and of the documents, so far
    for batch, sides in batches:
        for row in range(batch.num_rows):
            document, num_before = batch.slice(row, 1), position
            cuts = cut_document(
                document,
                boundary=None if boundary is None else boundary - num_characters,
                passage_characters=passage_characters,
            )
            for parts, is_after_boundary in cuts:
                positions = pa.array(np.arange(position, position + parts.num_rows), pa.uint64())
                position += parts.num_rows
                side = int(sides[row]) if boundary is None else VAL if is_after_boundary else TRAIN
                yield replace_column(parts, "position", positions), np.full(parts.num_rows, side, np.int8)
            if position == num_before:
                place = f"document {num_before}"
                rejects.count(RejectReason("empty", DROP_MESSAGES["empty"], 1, source, place))
            if boundary is not None:
                num_characters += _count_characters(document)
        rejects.num_positions = position  # the parts are numbered, not the documents


def _count_characters(batch: pa.RecordBatch) -> int:
    return pc.sum(pc.utf8_length(batch.column("text"))).as_py() or 0


def _read_contiguous(
    input_file: InputFile, span: Span, recipe: Recipe, rejects: Rejects, cleaned: Counter[str]
) -> Documents:
    """Cut a file at a fraction of its characters, or a span of it at its `boundary`.

    A whole file is read twice: first to count the characters. The text is not kept in memory
    between the two passes, because it may not fit.
    """
    boundary = span.boundary
    if boundary is None:
        boundary = compute_contiguous_cut(count_characters(input_file, span, recipe), recipe.val_fraction)
    batches = _clean_batches(_read_batches(input_file, span, recipe, rejects), recipe, cleaned)
    yield from _cut_batches(batches, recipe, boundary, rejects, input_file.name)


def count_characters(input_file: InputFile, span: Span, recipe: Recipe) -> int:
    """Return the number of characters in the cleaned text of `span`."""
    batches = _clean_batches(_read_batches(input_file, span, recipe, Rejects(None)), recipe, Counter())
    return sum(_count_characters(batch) for batch, _ in batches)


def _generate_synthetic(recipe: Recipe) -> Documents:
    if recipe.chat_columns is not None:
        questions = generate_questions(recipe.num_pairs, seed=recipe.seed)
        while chats := list(itertools.islice(questions, PAIRS_PER_BATCH)):
            yield _make_chat_batch(chats, recipe), np.full(len(chats), UNKNOWN, np.int8)
        return
    pairs = generate_pairs(recipe.num_pairs, seed=recipe.seed)
    while chunk := list(itertools.islice(pairs, PAIRS_PER_BATCH)):
        yield _make_pair_batch(chunk), np.full(2 * len(chunk), UNKNOWN, np.int8)


def _make_chat_batch(questions: list[Question], recipe: Recipe) -> pa.RecordBatch:
    """Return each question with its answer as a chat. Those about the same sentence are one group."""
    columns: dict[str, Any] = {
        "text": [make_chat_text(recipe, ("prompt", "completion"), (each.question, each.answer)) for each in questions],
        "lang": [each.lang for each in questions],
        "position": [each.number for each in questions],
        "group": [each.sentence for each in questions],
    }
    return make_batch({**columns, "source": 0}, len(questions))


def _make_pair_batch(pairs: list[Any]) -> pa.RecordBatch:
    """Return the English and then the Russian text of each pair, as documents of one group."""
    columns: dict[str, Any] = {
        "text": [text for pair in pairs for text in (pair.en, pair.ru)],
        "lang": ["en", "ru"] * len(pairs),
        "position": [2 * pair.number + i for pair in pairs for i in (0, 1)],
        "group": [str(pair.number) for pair in pairs for _ in (0, 1)],
    }
    for field in CONTROL_FIELDS:
        columns[field] = [getattr(pair, field) for pair in pairs for _ in (0, 1)]
    return make_batch({**columns, "source": 0}, 2 * len(pairs))
