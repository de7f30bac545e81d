"""What the tests of builds share: calling `build`, and document tables without texts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from preprocess.build.build import build
from preprocess.build.work_dir import DOCUMENT_DTYPE, LENGTH_DTYPE, WorkDir, iter_chunks
from preprocess.documents import UNKNOWN
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify

QUIET = Progress(quiet=True)
# A function-scoped fixture is shared by all examples of a test.
ANY_EXAMPLES = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS_PER_DOCUMENT = 10
# The columns of the fixture `corpus`.
COLUMNS = {"author_column": "who", "year_column": "year", "lang_column": "lang", "group_column": "pair"}
SHARD_TOKENS = 4000  # several shards of it


def run_build(recipe: Recipe, output_dir: Path, **arguments: Any) -> bool:
    """Call `build` quietly; the name is that of the directory."""
    defaults = {"name": output_dir.name, "source": None, "replace": False, "progress": QUIET}
    return build(recipe, output_dir, **{**defaults, **arguments})


def make_corpus_recipe(corpus: Path, **overrides: Any) -> Recipe:
    """Return a recipe for the fixture `corpus`."""
    settings_ = {**COLUMNS, "tokenizer": "gpt2", "shard_tokens": SHARD_TOKENS, **overrides}
    return load_recipe(None, inputs=(str(corpus),), **settings_)


def build_corpus(corpus: Path, output_dir: Path, *, workers: int = 1, **overrides: Any) -> Build:
    """Build the fixture `corpus`, or files like it, and verify the result."""
    recipe = make_corpus_recipe(corpus, **overrides)
    run_build(recipe, output_dir, name="x", replace=True, workers=workers)
    result = Build(output_dir)
    assert list(verify(result)) == []
    return result


def list_leftovers(directory: Path) -> list[str]:
    """Return the names of hidden files beside the builds, except lock files."""
    return [p.name for p in directory.iterdir() if p.name.startswith(".") and not p.name.endswith(".lock")]


def make_recipe(**settings_: Any) -> Recipe:
    return Recipe(corpus="x", **settings_)


def hash_number(number: int) -> np.ndarray:
    """Return a random hash, (16,) uint8, that is the same for equal numbers."""
    return np.random.default_rng(number).integers(0, 256, 16, np.uint8)


def write_values(work_dir: WorkDir, partition: int, **values: list[str]) -> None:
    """Write the values that the table of a partition refers to: of author, city and lang."""
    fields = {"author": [], "city": [], "lang": [], "alphabet": None, **values}
    work_dir.file(partition, "values").write_text(json.dumps(fields))


def read_sides(work_dir: WorkDir, num_documents: list[int]) -> np.ndarray:
    """Return the sides of all documents."""
    return np.concatenate([work_dir.map_sides(chunk) for chunk in iter_chunks(num_documents)])


def write_documents(
    work_dir: WorkDir, contents: list[int], groups: list[int], boundaries: list[int], **columns: list[int]
) -> list[int]:
    """Write document tables, and return the number of documents in each partition.

    Partitions begin at `boundaries`. Documents with the same number in `contents` or in `groups`
    have the same content or group.
    """
    table = np.zeros(len(contents), DOCUMENT_DTYPE)
    table["hash"] = [hash_number(content) for content in contents]
    table["group"] = [hash_number(1000 + group) for group in groups]
    for name in ("author", "city", "year", "lang"):
        table[name] = -1
    table["side"], table["text_bytes"] = UNKNOWN, 1
    for name, values in columns.items():
        table[name] = values
    edges = [0, *sorted(boundaries), len(contents)]
    for partition, (first, last) in enumerate(itertools.pairwise(edges)):
        table[first:last].tofile(work_dir.file(partition, "docs"))
        np.full(last - first, TOKENS_PER_DOCUMENT, LENGTH_DTYPE).tofile(work_dir.file(partition, "lengths"))
        write_values(work_dir, partition)
    return [last - first for first, last in itertools.pairwise(edges)]
