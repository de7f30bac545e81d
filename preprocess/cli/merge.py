"""`preprocess merge`."""

from __future__ import annotations

import click

from preprocess.cli.builds import describe, summarize
from preprocess.cli.completion import complete_build
from preprocess.cli.output import Output, output_options


@click.command()
@click.argument("builds", nargs=-1, required=True, shell_complete=complete_build)
@click.option("--name", metavar="NAME", required=True, help="Name of the merged build.")
@click.option(
    "--dedup/--no-dedup",
    default=True,
    show_default=True,
    help="Drop documents that have the text of an earlier one. Otherwise they go to the split of the earlier one.",
)
@click.option("--replace", is_flag=True, help="Replace the build that has the name.")
@output_options
def merge(output: Output, builds: tuple[str, ...], name: str, dedup: bool, replace: bool) -> None:
    """Merge builds that have the same tokenizer into one.

    BUILDS are the names or folders of at least two builds. The documents of the first build come first.
    Each document stays in its split, unless an earlier one has the same text, so no text is in both
    splits. Control tokens of authors, cities and years get new ids. If the merged build exists
    already, nothing is done.
    """
    from preprocess.build.from_tokens import build_from_tokens
    from preprocess.build.merge import plan_merge
    from preprocess.shards.format import Build, check_name, default_root

    if len(builds) < 2:
        raise click.UsageError("merge needs at least two builds")
    folder = default_root() / check_name(name)
    opened = [Build(build) for build in builds]
    if folder.exists() and any(build.folder.resolve() == folder.resolve() for build in opened):
        raise click.UsageError(f"--name {name} is one of the builds to merge; choose another name")
    progress = output.progress()
    is_new = build_from_tokens(plan_merge(opened, dedup=dedup), folder, name=name, replace=replace, progress=progress)
    made = Build(folder)
    headline = f"{'merged into' if is_new else 'already merged, nothing to do:'} {folder}"
    output.write({**describe(made), "is_new": is_new}, [headline, *summarize(made)])
