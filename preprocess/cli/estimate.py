"""`preprocess estimate`."""

from __future__ import annotations

from typing import Any

import click

from preprocess.cli.options import RecipeOptions, num_documents_option, recipe_options, workers_option
from preprocess.cli.output import Output, output_options
from preprocess.cli.sections import SectionedCommand


@click.command(cls=SectionedCommand)
@recipe_options
@num_documents_option(200)
@workers_option("Number of processes of the build.")
@output_options
def estimate(output: Output, num_documents: int, workers: int | None, **options: Any) -> None:
    """Estimate a build from some of its documents.

    Prints the tokens per document, the bytes per token and the encoding speed of these documents,
    and estimates the tokens, time, disk space and memory of the whole build.
    """
    from preprocess.build.engines.local import get_default_num_workers
    from preprocess.build.estimate import estimate_build, format_estimate
    from preprocess.build.plan import plan_estimate

    text = RecipeOptions(**options)
    progress = output.progress()
    with progress.phase("plan"):
        plan = plan_estimate(text.load_recipe(), text.source, progress)
    with progress.phase("estimate"):
        result = estimate_build(plan, num_documents, workers=workers or get_default_num_workers())
    output.write(result, format_estimate(result))
