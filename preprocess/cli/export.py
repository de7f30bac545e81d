"""`preprocess export`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from preprocess.cli.output import Output, output_options
from preprocess.errors import format_quantity


@click.command()
@click.argument("name")
@click.option("--format", "format_", type=click.Choice(["nanogpt", "text"]), required=True, help="Format to write.")
@click.option("--by", type=click.Choice(["language"]), help="With --format text: write one file per language.")
@click.option(
    "--authors",
    is_flag=True,
    help="With --format text: write the control tokens of author, city and year before each document.",
)
@click.option(
    "--output", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write to."
)
@click.option("--replace", is_flag=True, help="Replace existing files.")
@output_options
def export(
    output: Output, name: str, format_: str, by: str | None, authors: bool, folder: Path, replace: bool
) -> None:  # fmt: skip
    """Write a build in nanoGPT's format or as text.

    NAME is the name or the folder of a build.
    """
    from preprocess.exchange.nanogpt import export_nanogpt
    from preprocess.exchange.text import export_text
    from preprocess.shards.format import Build

    for option, is_given in ((f"--by {by}", by is not None), ("--authors", authors)):
        if is_given and format_ != "text":
            raise click.UsageError(f"{option} needs --format text, got --format {format_}")
    build, progress = Build(name), output.progress()
    if format_ == "text":
        with progress.phase("export"):
            paths = export_text(build, folder, by_language=by is not None, authors=authors, replace=replace)
    else:
        with progress.phase("export"):
            paths = export_nanogpt(build, folder, replace=replace)
        if build.manifest.recipe.get("chat_columns") is not None:
            progress.warn("nanoGPT has no loss masks, so it trains on all tokens of the chats")
    files = [{"path": str(path), "size_bytes": os.path.getsize(path)} for path in paths]
    lines = [f"{path}  {format_quantity(os.path.getsize(path), 'byte')}" for path in paths]
    output.write({"files": files}, lines)
