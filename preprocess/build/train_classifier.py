"""Read the examples of a classifier, train it, and write its file: `preprocess filter train`."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from preprocess.build.plan import Plan, make_plan
from preprocess.chats.marked_text import get_plain_texts
from preprocess.errors import FolioError, MisuseError
from preprocess.filters.classifier_model import write_classifier
from preprocess.filters.fit_classifier import QUANTILES, ExampleWriter, fit_classifier
from preprocess.progress import Progress
from preprocess.readers.records import Rejects
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import JsonObject
from preprocess.stages.dedup import hash_contents
from preprocess.stages.pipeline import read_documents

MIN_DOCUMENTS = 10  # of each class, so that one can be held out


def train_classifier(like: Recipe, unlike: Recipe, path: Path, *, replace: bool, progress: Progress) -> JsonObject:
    """Train a classifier on the documents of two recipes, write it to `path`, and return its figures.

    Raises MisuseError if `path` exists and `replace` is false, or if its folder does not exist, and
    FolioError if a file cannot be read or a recipe has too few different documents.
    """
    if path.exists() and not (replace and path.is_file()):
        raise MisuseError(f"{path} exists; choose another --out" + (", or pass --replace" if path.is_file() else ""))
    if not path.parent.is_dir():
        raise MisuseError(f"the folder {path.parent} does not exist; make it, or choose another --out")
    plans = [make_plan(recipe, None, progress) for recipe in (unlike, like)]
    with tempfile.TemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
        writer = ExampleWriter(file)
        for label, (plan, option) in enumerate(zip(plans, ("--unlike", "--like"), strict=True)):
            _read(plan, label, option, writer, progress)
        examples = writer.finish()
        for label, option in enumerate(("--unlike", "--like")):
            if (found := int(np.count_nonzero(examples.labels == label))) < MIN_DOCUMENTS:
                raise FolioError(
                    f"{option} has {found:,} different documents, expected at least {MIN_DOCUMENTS}; add more, or "
                    "divide long texts with --document"
                )
        with progress.phase("train"):
            model = fit_classifier(examples)
        del examples
    write_classifier(path, model)
    return model.training


def _read(plan: Plan, label: int, option: str, writer: ExampleWriter, progress: Progress) -> None:
    """Add the documents of a plan, which `option` names, to `writer`."""
    has_chats = plan.recipe.chat_columns is not None
    sizes = plan.partition_bytes()
    num_documents = 0
    with progress.bar(f"read {option}", total=sum(sizes), unit="B") as bar:
        for size, partition in zip(sizes, plan.partitions, strict=True):
            spans = ((plan.input_files[span.file_number], span) for span in partition.spans)
            for batch, _ in read_documents(spans, plan.recipe, Rejects(None), Counter()):
                texts = get_plain_texts(batch.column("text"), has_chats=has_chats)
                writer.add(texts, hash_contents(texts), label)
                num_documents += batch.num_rows
            bar.update(size, num_documents)
    if not num_documents:
        raise FolioError(f"{option} has no documents; name files that have text")


def format_figures(path: Path, figures: JsonObject) -> list[str]:
    """Return the lines that `preprocess filter train` prints."""
    precision = "none kept" if figures["precision"] is None else f"{figures['precision']:.1%}"
    lines = [
        f"wrote {path}: trained on {figures['documents_like'] - figures['held_out_like']:,} documents of --like and "
        f"{figures['documents_unlike'] - figures['held_out_unlike']:,} of --unlike",
        f"held out    {figures['held_out_like']:,} like, {figures['held_out_unlike']:,} unlike: accuracy "
        f"{figures['accuracy']:.1%}; at a score of 0.5, precision {precision}, recall {figures['recall']:.1%}",
        "scores      " + " ".join(f"{_name(quantile):>7}" for quantile in QUANTILES),
    ]
    for name in ("like", "unlike"):
        lines.append(f"  {name:8}  " + " ".join(f"{value:7.4f}" for value in figures[f"scores_{name}"]))
    return lines


def _name(quantile: float) -> str:
    return {0.0: "min", 1.0: "max"}.get(quantile, f"{quantile:.0%}")
