"""The evaluation items that the documents of a build contain: their index, and the report about them.

The index is written to the work directory before the documents are prepared, so that all workers
map the same files. Each partition has a file with the items that were found in it, and stats.json has
the sums.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.build.work_dir import HashedFile, WorkDir
from preprocess.errors import format_quantity, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import JsonObject
from preprocess.stages.decontaminate import MIN_WORDS, Decontaminator, EvaluationIndex, OverlapCounter
from preprocess.stages.evaluation_items import build_index

INDEX_FOLDER = "evaluation"
# (3 + 2 P + M,) uint64: the number of contaminated documents, P and M; P items, the number of documents of each, and
# M n-grams.
OVERLAPS_SUFFIX = "overlaps"
MAX_LISTED_ITEMS = 1_000  # in stats.json; all are counted
MAX_PRINTED_ITEMS = 5


def write_index(work_dir: WorkDir, files: Sequence[InputFile]) -> list[str]:
    """Write the index of the evaluation items in `files`, and return warnings about files without effect.

    The files of an index that an earlier attempt has written are replaced, not changed: its workers may
    still map them. Raises the errors of `build_index`.
    """
    folder = work_dir.path / INDEX_FOLDER
    partial = work_dir.path / f"{INDEX_FOLDER}.{os.getpid()}"
    for path in (folder, partial):
        path.mkdir(exist_ok=True)
    index = build_index(files)
    index.save(partial)
    for path in partial.iterdir():
        os.replace(path, folder / path.name)
    partial.rmdir()
    return [
        f"--decontaminate {shorten(file.name)} has no effect: all of its {format_quantity(file.num_items, 'item')} "
        f"have fewer than {MIN_WORDS} words; name a file with longer items"
        for file in index.files
        if file.num_items == file.num_short
    ]


def load_decontaminator(work_dir: WorkDir, recipe: Recipe) -> Decontaminator | None:
    """Return a decontaminator with the index in the work directory, or None if the recipe has no evaluation items."""
    if not recipe.decontaminate:
        return None
    return Decontaminator(_load_index(work_dir.path), is_dropping=recipe.decontaminate_policy == "drop")


@functools.lru_cache(maxsize=1)  # for the next tasks of this process
def _load_index(path: Path) -> EvaluationIndex:
    return EvaluationIndex.load(path / INDEX_FOLDER)


def write_overlaps(file: HashedFile, decontaminator: Decontaminator) -> None:
    """Write the items and n-grams that were found in a partition."""
    items, num_documents, ngrams = decontaminator.counter.list_found()
    header = np.array([decontaminator.num_documents, len(items), len(ngrams)])
    file.write(np.concatenate([header, items, num_documents, ngrams]).astype("<u8"))


def describe_contamination(work_dir: WorkDir, recipe: Recipe, num_partitions: int) -> JsonObject:
    """Return the entry `decontamination` of stats.json, or an empty object if the recipe has no evaluation items."""
    if not recipe.decontaminate:
        return {}
    index = EvaluationIndex.load(work_dir.path / INDEX_FOLDER)
    counter, num_contaminated = OverlapCounter(index), 0
    for partition in range(num_partitions):
        values = np.fromfile(work_dir.file(partition, OVERLAPS_SUFFIX), "<u8").astype(np.int64)
        num_documents, num_items = values[:2].tolist()
        num_contaminated += num_documents
        items, of_items, ngrams = np.split(values[3:], [num_items, 2 * num_items])
        counter.add(items, of_items, ngrams)
    items, of_items, _ = counter.list_found()
    num_found = counter.count_ngrams()
    first_items = np.cumsum([0, *(file.num_items for file in index.files)])
    numbers = np.searchsorted(first_items, items, "right") - 1  # of the files
    most_frequent = np.lexsort([items, -of_items])[:MAX_LISTED_ITEMS]
    listed = [
        {
            "file": index.files[number].name,
            "item": item - int(first_items[number]),
            "documents": num_documents,
            "ngrams": int(num_found[item]),
            "of": int(index.num_ngrams[item]),
        }
        for number, item, num_documents in zip(
            *(values[most_frequent].tolist() for values in (numbers, items, of_items)), strict=True
        )
    ]
    files = [
        {"name": file.name, "items": file.num_items, "too_short": file.num_short, "found": num_found_in_file}
        for file, num_found_in_file in zip(
            index.files, np.bincount(numbers, minlength=len(index.files)).tolist(), strict=True
        )
    ]
    described: JsonObject = {"documents": num_contaminated, "files": files, "items": listed}
    if len(items) > len(listed):
        described["items_not_listed"] = len(items) - len(listed)
    return {"decontamination": {"policy": recipe.decontaminate_policy, **described}}


def format_contamination(entry: Any) -> list[str]:
    """Return the lines that `preprocess stats` prints for the `decontamination` of stats.json, or none without it."""
    if entry is None:
        return []
    verb = "dropped" if entry["policy"] == "drop" else "kept"
    lines = [f"evaluation  {verb} {format_quantity(entry['documents'], 'document')} with evaluation items"]
    for file in entry["files"]:
        found = f"{file['found']:,} of {format_quantity(file['items'], 'item')} found"
        short = f"; {file['too_short']:,} too short to look for" if file["too_short"] else ""
        lines.append(f"{'':12}{shorten(file['name'])}: {found}{short}")
    for item in entry["items"][:MAX_PRINTED_ITEMS]:
        num_documents, of = format_quantity(item["documents"], "document"), format_quantity(item["of"], "n-gram")
        lines.append(
            f"{'':12}{shorten(item['file'])} item {item['item']:,}: in {num_documents}, {item['ngrams']:,} of its {of}"
        )
    if num_more := len(entry["items"][MAX_PRINTED_ITEMS:]) + entry.get("items_not_listed", 0):
        lines.append(f"{'':12}and {format_quantity(num_more, 'other item')}; stats.json lists them")
    return lines
