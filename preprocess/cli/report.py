"""`preprocess report`."""

from __future__ import annotations

from pathlib import Path

import click

from preprocess.cli.completion import complete_build
from preprocess.cli.output import Output, output_options
from preprocess.errors import MisuseError, format_quantity


@click.command()
@click.argument("name", shell_complete=complete_build)
@click.option(
    "--output",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write (default: NAME.html in the current directory).",
)
@click.option("--replace", is_flag=True, help="Replace an existing file.")
@output_options
def report(output: Output, name: str, path: Path | None, replace: bool) -> None:
    """Write one HTML page about a build.

    NAME is the name or the folder of a build. The page shows how many documents were read, dropped
    and kept, with examples; lengths, languages, authors and tokens; the shards, the recipe and the input
    files. It opens from the disk, without a network. All tokens are read once.
    """
    from preprocess.report.describe import describe_page
    from preprocess.report.render import render_page
    from preprocess.shards.files import write_durable
    from preprocess.shards.format import Build

    build = Build(name)
    target = Path(f"{build.name}.html") if path is None else path
    if target.is_dir():
        raise MisuseError(f"{target} is a folder; name a file with --output")
    if target.exists() and not replace:
        raise MisuseError(f"{target} exists already; pass --replace, or choose another --output")
    with output.progress().phase("report"):
        data = render_page(describe_page(build)).encode("utf-8", "backslashreplace")
        write_durable(target, data)
    output.write({"path": str(target), "size_bytes": len(data)}, [f"{target}  {format_quantity(len(data), 'byte')}"])
