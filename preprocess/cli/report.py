"""`preprocess report`."""

from __future__ import annotations

from pathlib import Path

import click

from preprocess.cli.completion import complete_build
from preprocess.cli.output import Output, output_options
from preprocess.errors import format_quantity


@click.command()
@click.argument("name", shell_complete=complete_build)
@click.argument("other", required=False, shell_complete=complete_build)
@click.option(
    "--output",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write (default: NAME.html, or NAME-OTHER.html, in the current directory). Missing "
    "folders are created.",
)
@click.option("--replace", is_flag=True, help="Replace an existing file.")
@output_options
def report(output: Output, name: str, other: str | None, path: Path | None, replace: bool) -> None:
    """Write one HTML page about a build, or about two.

    NAME is the name or the folder of a build. The page shows how many documents were read, dropped
    and kept, with examples; lengths, languages, authors and tokens; the shards, the recipe and the input
    files. With OTHER, a second build, it shows both side by side: settings, documents that only one of them
    has, lengths, languages and tokens. It opens from the disk, without a network. All tokens are read once.
    """
    from preprocess.pages.render import render_page
    from preprocess.shards.files import check_output_file, write_durable
    from preprocess.shards.format import Build

    builds = [Build(each) for each in (name, other) if each is not None]
    target = Path(f"{'-'.join(build.name for build in builds)}.html") if path is None else path
    check_output_file(target, replace=replace)
    target.parent.mkdir(parents=True, exist_ok=True)  # now, because reading all tokens can take hours
    with output.progress().phase("report"):
        if len(builds) == 1:
            from preprocess.report.describe import describe_page

            data = render_page(describe_page(builds[0]), "preprocess.report", "build.html")
        else:
            from preprocess.report.compare import describe_comparison

            data = render_page(describe_comparison(builds[0], builds[1]), "preprocess.report", "comparison.html")
        write_durable(target, data)
    output.write({"path": str(target), "size_bytes": len(data)}, [f"{target}  {format_quantity(len(data), 'byte')}"])
