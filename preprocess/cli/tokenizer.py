"""`preprocess tokenizer train` and `preprocess tokenizer inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from preprocess.cli.group import Group
from preprocess.cli.options import RecipeOptions, num_documents_option, recipe_options, workers_option
from preprocess.cli.output import Output, output_options, version_option
from preprocess.cli.sections import SectionedCommand


@version_option
@click.group(cls=Group)
def tokenizer() -> None:
    """Train a tokenizer, or measure how well one fits a text."""


@tokenizer.command(cls=SectionedCommand)
@recipe_options
@click.option(
    "--output", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write to."
)
@workers_option()
@click.option("--replace", is_flag=True, help="Replace an existing tokenizer.")
@output_options
def train(output: Output, folder: Path, workers: int | None, replace: bool, **options: Any) -> None:
    """Train a tokenizer on the training documents of a corpus.

    Trains a SentencePiece BPE tokenizer by default. With --tokenizer char, collects the characters
    of all documents instead. `preprocess build --tokenizer DIR` uses the trained tokenizer. A build
    with --tokenizer sentencepiece or char and otherwise the same options trains the same one.
    """
    from preprocess.build.build import build_tokenizer
    from preprocess.build.engines.local import get_default_num_workers

    text = RecipeOptions(**options)
    recipe = text.load_recipe(tokenizer=text.settings["tokenizer"] or "sentencepiece")
    trained = build_tokenizer(
        recipe,
        folder,
        source=text.source,
        replace=replace,
        progress=output.progress(),
        workers=workers or get_default_num_workers(),
    )
    files = [str(folder / name) for name in trained.files]
    result = {"tokenizer": trained.kind, "vocab_size": trained.vocab_size, "files": files}
    output.write(result, [f"trained {trained.kind} with {trained.vocab_size:,} ids: {', '.join(files)}"])


@tokenizer.command(cls=SectionedCommand)
@click.argument("name")
@recipe_options
@num_documents_option(1000)
@output_options
def inspect(output: Output, name: str, num_documents: int, **options: Any) -> None:
    """Measure how well a tokenizer fits a text.

    Prints the character coverage, the tokens per word and the bytes per token of each language.

    With --corpus or --input, NAME is a tokenizer (gpt2, a file or a folder) and is measured on that
    text. Otherwise NAME is a build, and its tokenizer is measured on its validation documents. Of a
    document, the first 4,000,000 characters are measured, of each language about 32 MB.
    """
    from preprocess.build.inspect_tokenizer import inspect_build, inspect_by_name
    from preprocess.build.plan import plan_estimate
    from preprocess.shards.format import Build
    from preprocess.tokenizers.inspect import format_inspection

    text = RecipeOptions(**options)
    if text.has_text:
        recipe = text.load_recipe(tokenizer="byte")  # any tokenizer that is not trained; it is not used
        progress = output.progress()
        with progress.phase("inspect"):
            result = inspect_by_name(name, plan_estimate(recipe, text.source, progress), num_documents)
    else:
        if _is_tokenizer(name):
            raise click.UsageError(f"{name} is a tokenizer: pass --corpus or --input with a text to measure it on")
        with output.progress().phase("inspect"):
            result = inspect_build(Build(name), num_documents)
    output.write(result, format_inspection(result))


def _is_tokenizer(name: str) -> bool:
    from preprocess.shards.format import MANIFEST
    from preprocess.tokenizers import list_tokenizers

    if "/" not in name and name in list_tokenizers():
        return True
    return Path(name).exists() and not (Path(name) / MANIFEST).is_file()
