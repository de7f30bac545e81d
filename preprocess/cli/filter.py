"""`preprocess filter try`."""

from __future__ import annotations

from typing import Any

import click

from preprocess.cli.group import Group
from preprocess.cli.options import RecipeOptions, num_documents_option, recipe_options
from preprocess.cli.output import Output, output_options, version_option


@version_option
@click.group("filter", cls=Group)
def filter_group() -> None:
    """Try filters before a build."""


@filter_group.command("try")
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
