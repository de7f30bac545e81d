"""Read evaluation sets: files of text, with an item in each line, or tables, with an item in each row.

The text of an item is the column `text` of a table. A table without it usually has the question, the
choices and the answer in separate columns. In this case all columns of text are read, and each of them is
looked for separately. The names of the columns are known only after the file was opened, so the file is
read once for each column.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from preprocess.errors import MisuseError, shorten
from preprocess.inputs.describe import describe_input_files
from preprocess.inputs.detect import UnclearFileError
from preprocess.inputs.input_files import InputFile, Span
from preprocess.readers.input_checks import InputChecker
from preprocess.readers.partitions import iter_spans
from preprocess.readers.records import MissingColumnError, Rejects
from preprocess.recipes.schema import TABLE_FORMATS, Recipe
from preprocess.stages.decontaminate import Decontaminator, EvaluationIndex, IndexBuilder
from preprocess.stages.pipeline import read_documents

MAX_COLUMNS = 100
# How evaluation files are read. Their bytes do not get into the build, so a byte that is not UTF-8 is not an error.
READING = Recipe(corpus="evaluation", document="line", clean=(), invalid_utf8="replace", oversized="skip")


def find_evaluation_files(recipe: Recipe) -> tuple[Recipe, list[InputFile]]:
    """Return the files of the setting `decontaminate`, and the recipe with their checksums.

    Raises MisuseError for a path that is not a file of text or a table, or if its format or encoding is not clear.
    """
    paths = recipe.decontaminate
    for path in paths:
        if not Path(path).is_file():
            raise MisuseError(
                f"--decontaminate {path} {_describe_problem(Path(path))}; name a file with evaluation items"
            )
    files = list(map(_describe_file, paths))
    for path, found in zip(paths, files, strict=True):
        if len(found) != 1 or found[0].archive or found[0].format not in ("text", *TABLE_FORMATS):
            raise MisuseError(
                f"--decontaminate {path} must be a text file with one item in each line, or a JSON, CSV, "
                "Parquet or Arrow file with one item in each row; unpack or convert it"
            )
    found_files = [file for (file,) in files]
    sha256 = tuple(file.sha256 for file in found_files)
    return dataclasses.replace(recipe, decontaminate_sha256=sha256), found_files


def _describe_file(path: str) -> list[InputFile]:
    """Return the files of `path`: one, unless it is an archive. Raises MisuseError or FolioError."""
    try:
        return describe_input_files([(Path(path).name, path)], READING, {}, num_threads=1).files
    except UnclearFileError as e:  # its advice names options that apply to the inputs only
        raise MisuseError(
            f"--decontaminate: {e.problem}; convert it to UTF-8 with one item in each line, and to a name that ends "
            "in .txt"
        ) from e


def _describe_problem(path: Path) -> str:
    """Return why `path`, which is not a regular file, cannot be read."""
    if path.is_dir():
        return "is a folder"
    return "is a pipe or a device" if path.exists() else "does not exist"


def make_decontaminator(recipe: Recipe, files: Sequence[InputFile]) -> Decontaminator | None:
    """Return a decontaminator for the items in `files`, or None if the recipe has none. Raises like `build_index`."""
    if not recipe.decontaminate:
        return None
    return Decontaminator(build_index(files), is_dropping=recipe.decontaminate_policy == "drop")


def build_index(files: Sequence[InputFile]) -> EvaluationIndex:
    """Return the index of the items in `files`.

    Raises MisuseError if a file has no item or a table has no column of text, and FolioError if a file
    cannot be read, if it has changed, or if there are too many items.
    """
    builder = IndexBuilder()
    for file in files:
        num_items = 0
        for texts, positions, num_read in _read_items(file):
            builder.add(texts, positions)
            num_items = max(num_items, num_read)
        if not num_items:
            raise MisuseError(
                f"--decontaminate {file.path} has no item with text; write the text of each item to a line of a text "
                "file, or to the column text of a table"
            )
        builder.finish_file(file.name, file.sha256, num_items)
    return builder.build()


def _read_items(file: InputFile) -> Iterator[tuple[pa.LargeStringArray, np.ndarray, int]]:
    """Yield (texts, positions, num_items) for parts of a file.

    `positions`: (T,) int64, the index of each text's item, from 0. `num_items`: read so far.
    """
    for recipe in _list_readings(file):
        rejects = Rejects(None)
        for batch, _ in read_documents([(file, Span(file.number))], recipe, rejects, Counter()):
            positions = batch.column("position").to_numpy().astype(np.int64)
            yield batch.column("text"), positions, int(positions.max(initial=-1)) + 1
        yield pa.array([], pa.large_string()), np.empty(0, np.int64), sum(n for _, n in rejects.finished_spans)
    file.check_unchanged()


def _list_readings(file: InputFile) -> list[Recipe]:
    """Return a recipe for each column of text, or one for a file without columns."""
    if file.format == "text":
        return [READING]
    try:
        _check(file, READING)
    except MissingColumnError as e:
        names = [name for name in e.names if name.rpartition(".")[0] not in e.names]  # without values in a nested one
    else:
        return [READING]
    recipes = []
    for name in names[:MAX_COLUMNS]:
        recipe = dataclasses.replace(READING, text_column=name)
        try:
            _check(file, recipe)
        except MisuseError:  # its values are not text
            continue
        recipes.append(recipe)
    if not recipes:
        shown = ", ".join(map(shorten, names[:20]))
        raise MisuseError(
            f"--decontaminate {file.path} has no column of text, its columns are {shown}; write the text of each item "
            "to a column text"
        )
    return recipes


def _check(file: InputFile, recipe: Recipe) -> None:
    """Raise MisuseError if a table does not have the recipe's column of text, FolioError if it cannot be read."""
    InputChecker([file], recipe).check_all()
    next(iter_spans(file, recipe), None)  # checks the schema of Parquet and Arrow files
