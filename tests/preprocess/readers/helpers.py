"""Read single files without a build, and count the memory that Arrow allocates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from preprocess.inputs.describe import describe_input_files, number_files
from preprocess.inputs.input_files import InputFile
from preprocess.readers import read_span
from preprocess.readers.input_checks import InputChecker
from preprocess.readers.partitions import iter_spans
from preprocess.readers.records import Rejects
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.stages.make_documents import DocumentMaker


class RejectsInMemory(Rejects):
    """Rejects whose malformed records are in a list: (location, reason, record)."""

    def __init__(self) -> None:
        super().__init__(None)
        self.malformed: list[tuple[str, str, bytes]] = []

    def reject(self, name: str, location: str, reason: str, record: bytes | memoryview) -> None:
        self.counts["malformed"] += 1
        self.malformed.append((location, reason, bytes(record)))


def describe(path: Path, **overrides: Any) -> tuple[InputFile, Recipe]:
    """Return the input file at `path` and a recipe that reads it."""
    recipe = load_recipe(None, inputs=(str(path),), tokenizer="byte", **overrides)
    found = describe_input_files([(path.name, str(path))], recipe, {path.name: "none"}, num_threads=1)
    (input_file,) = number_files(found.files, recipe)
    return input_file, recipe


def iter_texts(path: Path, rejects: Rejects | None = None, **overrides: Any) -> Iterator[pa.LargeStringArray]:
    """Check a file and yield its texts in the batches in which it is read."""
    input_file, recipe = describe(path, **overrides)
    rejects = rejects or Rejects(None)
    InputChecker([input_file], recipe).check_all()
    for span in iter_spans(input_file, recipe):
        maker = DocumentMaker([input_file], recipe, rejects)
        for records in read_span(input_file, span, recipe, rejects):
            yield maker.make(records)[0].column("text")


def list_texts(path: Path, rejects: Rejects | None = None, **overrides: Any) -> list[str]:
    """Check a file and return its texts."""
    return [text for texts in iter_texts(path, rejects, **overrides) for text in texts.to_pylist()]


@contextmanager
def count_arrow_memory() -> Iterator[Any]:
    """Yield a memory pool whose `max_memory()` counts what Arrow allocates in the block."""
    previous = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(previous)
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(previous)
