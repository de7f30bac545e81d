"""`preprocess rejects`."""

from __future__ import annotations

import json

import click

from preprocess.cli.completion import complete_build
from preprocess.cli.output import Output, output_options
from preprocess.errors import one_line


@click.command()
@click.argument("name", shell_complete=complete_build)
@output_options
def rejects(output: Output, name: str) -> None:
    """Print the records that a build rejected or changed, and why.

    NAME is the name or the folder of a build, even of one that failed because nothing was left.
    Each line has the file, the place in it, the reason and the beginning of the record. A place is
    an offset in bytes of the decompressed file, a row of a CSV file (from 1, the header), or a row
    of a Parquet file (from 0). With --json, each line is a JSON object with the whole record, up to
    a megabyte of it.

    Records that the recipe itself excludes, such as duplicates or those that do not satisfy
    --where, are counted by `preprocess stats` and not listed.
    """
    from preprocess.build.read_rejects import find_rejects, format_reject, read_rejects

    path = find_rejects(name)
    if path is None:
        if not output.quiet:
            click.echo(one_line(f"no rejected records of {name} are listed; `preprocess stats` counts them"), err=True)
        return
    for entry in read_rejects(path):
        click.echo(json.dumps(entry) if output.as_json else format_reject(entry))
