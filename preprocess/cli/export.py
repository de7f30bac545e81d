"""`preprocess export`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from preprocess.cli.completion import complete_build
from preprocess.cli.output import Output, output_options
from preprocess.errors import MisuseError, format_quantity

if TYPE_CHECKING:
    from preprocess.shards.format import Build

# Module and function that write a format. A module is imported when its format is written.
WRITERS = {
    "nanogpt": ("preprocess.exchange.nanogpt", "export_nanogpt"),
    "llm.c": ("preprocess.exchange.llmc", "export_llmc"),
    "megatron": ("preprocess.exchange.megatron", "export_megatron"),
    "datatrove": ("preprocess.exchange.datatrove", "export_datatrove"),
    "olmo": ("preprocess.exchange.olmo", "export_olmo"),
    "mds": ("preprocess.exchange.mds", "export_mds"),
    "litdata": ("preprocess.exchange.litdata", "export_litdata"),
    "parquet": ("preprocess.exchange.parquet", "export_parquet"),
    "jsonl": ("preprocess.exchange.jsonl", "export_jsonl"),
}
FORMATS_WITH_MASKS = ("datatrove", "mds", "parquet")
TEXT_FORMATS = ("jsonl", "text")


@click.command()
@click.argument("name", shell_complete=complete_build)
@click.option("--format", "format_", type=click.Choice([*WRITERS, "text"]), required=True, help="Format to write.")
@click.option("--by", type=click.Choice(["language"]), help="With --format text: write one file per language.")
@click.option(
    "--authors",
    is_flag=True,
    help="With --format text: write the control tokens of author, city and year before each document.",
)
@click.option(
    "--drop-masks",
    is_flag=True,
    help="Export chats to a format without loss masks; a model is then trained to predict all of their tokens.",
)
@click.option(
    "--output", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write to."
)
@click.option("--replace", is_flag=True, help="Replace existing files.")
@output_options
def export(
    output: Output,
    name: str,
    format_: str,
    by: str | None,
    authors: bool,
    drop_masks: bool,
    folder: Path,
    replace: bool,
) -> None:  # fmt: skip
    """Write a build in the format of another program.

    NAME is the name or the folder of a build. The formats are the token files of nanoGPT, llm.c (also
    read by modded-nanogpt), Megatron-LM, datatrove, OLMo, MosaicML Streaming (mds) and LitData; Parquet
    with the ids of each document, for Hugging Face datasets; and the text without tokens, as plain text
    or as JSON lines with the author, city, year, language, source and position of each document.
    """
    from preprocess.shards.format import SPLITS, Build
    from preprocess.shards.verify import check_files

    for option, is_given in ((f"--by {by}", by is not None), ("--authors", authors)):
        if is_given and format_ != "text":
            raise click.UsageError(f"{option} needs --format text, got --format {format_}")
    if drop_masks and format_ in (*FORMATS_WITH_MASKS, *TEXT_FORMATS):
        raise click.UsageError(f"--drop-masks needs a format of tokens without loss masks, got --format {format_}")
    build, progress = Build(name), output.progress()
    _check_masks(build, format_, drop_masks=drop_masks)
    with progress.phase("verify"), build.reading():
        check_files(build, [shard for split in SPLITS for shard in build.manifest.splits[split].shards])
    if format_ in WRITERS:
        module, function = WRITERS[format_]
        with progress.phase("export"):
            paths = getattr(importlib.import_module(module), function)(build, folder, replace=replace)
    else:
        from preprocess.exchange.text import export_text

        with progress.phase("export"):
            paths = export_text(build, folder, by_language=by is not None, authors=authors, replace=replace)
    files = [{"path": str(path), "size_bytes": os.path.getsize(path)} for path in paths]
    lines = [f"{path}  {format_quantity(os.path.getsize(path), 'byte')}" for path in paths]
    output.write({"files": files}, lines)


def _check_masks(build: Build, format_: str, *, drop_masks: bool) -> None:
    """Raise MisuseError if the build has loss masks that the format cannot have, unless they may be dropped."""
    if build.has_masks and format_ not in (*FORMATS_WITH_MASKS, *TEXT_FORMATS) and not drop_masks:
        raise MisuseError(
            f"{build.name} has chats, and the format {format_} has no loss masks, so a model would be trained to "
            f"predict the prompts too; pass --drop-masks, or use --format {' or '.join(FORMATS_WITH_MASKS)}"
        )
