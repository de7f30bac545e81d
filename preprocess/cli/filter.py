"""`preprocess filter try` and `preprocess filter train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from preprocess.cli.group import Group
from preprocess.cli.options import NO_PROCESSING, RecipeOptions, format_options, num_documents_option, recipe_options
from preprocess.cli.output import Output, output_options, version_option
from preprocess.cli.sections import SectionedCommand


@version_option
@click.group("filter", cls=Group)
def filter_group() -> None:
    """Try filters before a build, or train a classifier for one."""


@filter_group.command("try", cls=SectionedCommand)
@click.argument("specs", metavar="[SPEC]...", nargs=-1)
@recipe_options
@num_documents_option(1000, "Number of documents to read.")
@click.option(
    "--examples",
    "num_examples",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of documents to show for each reason, and of those that are kept.",
)
@output_options
def try_command(output: Output, specs: tuple[str, ...], num_documents: int, num_examples: int, **options: Any) -> None:
    """Show documents that filters drop and keep. No files are written.

    SPEC is a filter, NAME or NAME:key=value,key=value, as for --filter. The filters of --quality are
    applied first, then those of --filter, then each SPEC. Each filter reads only the documents that the
    filters before it keep. For each filter, dropped documents are printed beside kept ones, with the
    reason and the measured value. Control characters are escaped.

    The options of later steps, such as --dedup, --decontaminate, --split and --tokenizer, are accepted, so
    that the options of a build can be used unchanged. They have no effect here.
    """
    from preprocess.build.filter_stats import format_filter_counts
    from preprocess.build.plan import plan_estimate
    from preprocess.build.try_filters import format_trial, try_filters

    text = RecipeOptions(**{**options, "filters": (*options["filters"], *specs)})
    recipe = text.load_recipe(tokenizer="byte")  # any tokenizer that is not trained; it is not used
    if not recipe.filters:
        raise click.UsageError("no filter to try: name one, such as gopher_quality, or pass --quality")
    progress = output.progress()
    with progress.phase("filter try"):
        entries = try_filters(plan_estimate(recipe, text.source, progress), num_documents, num_examples)
    output.write(
        entries, [line for entry in entries for line in (*format_filter_counts([entry]), *format_trial(entry))]
    )


@filter_group.command("train", cls=SectionedCommand)
@click.option(
    "--like",
    multiple=True,
    required=True,
    metavar="PATH",
    help="Examples of documents to keep: a file, a folder, a quoted glob or a URL. May be repeated.",
)
@click.option(
    "--unlike",
    multiple=True,
    required=True,
    metavar="PATH",
    help="Examples of documents to drop, as for --like. May be repeated.",
)
@click.option(
    "--out", "path", type=click.Path(path_type=Path), required=True, metavar="FILE", help="File to write the model to."
)
@format_options
@click.option("--replace", is_flag=True, help="Replace an existing file.")
@output_options
def train_command(
    output: Output, like: tuple[str, ...], unlike: tuple[str, ...], path: Path, replace: bool, **options: Any
) -> None:
    """Train a classifier that recognises documents like those of --like.

    `preprocess build --filter classifier:model=FILE,min_score=0.5` then drops the documents with a
    score, from 0 to 1, below 0.5. The documents are read and cleaned as in a build, and each
    different document is used once. A tenth of them, chosen by the hashes of their contents, is held
    out. For this tenth, the accuracy, the precision and recall at a score of 0.5, and the quantiles of
    the scores are printed.

    The same documents give the same file, byte for byte. Metadata and groups do not affect it.
    """
    from preprocess.build.train_classifier import format_figures, train_classifier

    liked, unliked = (
        RecipeOptions(None, paths, None, **NO_PROCESSING, **options).load_recipe(tokenizer="byte")
        for paths in (like, unlike)
    )
    figures = train_classifier(liked, unliked, path, replace=replace, progress=output.progress())
    output.write({"file": str(path), **figures}, format_figures(path, figures))
