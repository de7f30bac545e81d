"""`preprocess import`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from preprocess.cli.builds import describe, summarize
from preprocess.cli.output import Output, output_options

# Module and function that read a format. A module is imported when its format is read.
READERS = {
    "nanogpt": ("preprocess.exchange.nanogpt", "read_nanogpt"),
    "llm.c": ("preprocess.exchange.llmc", "read_llmc"),
    "megatron": ("preprocess.exchange.megatron", "read_megatron"),
    "datatrove": ("preprocess.exchange.datatrove", "read_datatrove"),
    "olmo": ("preprocess.exchange.olmo", "read_olmo"),
    "mds": ("preprocess.exchange.read_mds", "read_mds"),
    "parquet": ("preprocess.exchange.read_parquet", "read_parquet"),
}
PATH = click.Path(path_type=Path)


@click.command("import")
@click.argument("files", nargs=-1, type=PATH, required=True)
@click.option("--format", "format_", type=click.Choice([*READERS]), required=True, help="Format of the files.")
@click.option(
    "--tokenizer",
    metavar="NAME",
    required=True,
    help="The tokenizer with which the files were written: gpt2 or another tiktoken encoding, byte, a tokenizer's file "
    "or folder, or the folder of a build, whose control tokens of authors and chats are used too.",
)
@click.option("--name", metavar="NAME", required=True, help="Name of the build.")
@click.option(
    "--val", type=PATH, multiple=True, metavar="PATH", help="Validation files, or their folder. May be repeated."
)
@click.option(
    "--val-fraction",
    type=float,
    metavar="F",
    help="Without validation files: the fraction of the documents in the val split; 0 for none.  [default: 0.1]",
)
@click.option("--seed", type=int, metavar="N", help="Seed of the split.  [default: 0]")
@click.option(
    "--shard-tokens", type=int, metavar="N", help="Start a new shard after the document that reaches N tokens."
)
@click.option("--replace", is_flag=True, help="Replace the build that has the name.")
@output_options
def import_command(
    output: Output, files: tuple[Path, ...], format_: str, tokenizer: str, name: str, val: tuple[Path, ...],
    val_fraction: float | None, seed: int | None, shard_tokens: int | None, replace: bool,
) -> None:  # fmt: skip
    """Make a build of token files that another program wrote.

    FILES are files of tokens or folders of them. In a folder, files whose path has the word val, valid
    or validation are for validation. If there are no validation files, the documents are split at
    random, equal texts to the same side. Every document is kept. If the build exists already, nothing
    is done.
    """
    from preprocess.build.from_tokens import build_from_tokens
    from preprocess.build.import_tokens import ImportFiles, ImportSettings, plan_import
    from preprocess.exchange.find_files import find_token_paths
    from preprocess.inputs.part_names import find_gaps, find_missing_parts
    from preprocess.inputs.token_files import TokenIds, describe_token_files
    from preprocess.shards.format import Build, check_name, default_root
    from preprocess.tokenizers.vocabulary import load_vocabulary

    folder = default_root() / check_name(name)
    module_name, function = READERS[format_]
    module = importlib.import_module(module_name)
    train_paths, val_paths = find_token_paths(files, val, module.NAMES)
    given: dict[str, Any] = {"val_fraction": val_fraction, "seed": seed, "shard_tokens": shard_tokens}
    for option in ("val_fraction", "seed") if val_paths else ():
        if given[option] is not None:
            raise click.UsageError(f"--{option.replace('_', '-')} has no effect if there are validation files")
    settings = ImportSettings(format_, **{key: value for key, value in given.items() if value is not None})
    vocabulary, progress = load_vocabulary(tokenizer), output.progress()
    with progress.phase("hash"):
        train, validation = describe_token_files([train_paths, val_paths], module.NAMES)
    named = {path.name for path in (*files, *val)}  # who names some files wants no others
    names = [file.tokens.name for file in (*train, *validation) if Path(file.tokens.path).name not in named]
    warnings = [*find_missing_parts(names), *find_gaps(names)]
    if module.NAMES.find_missing is not None:
        ids = TokenIds(vocabulary.vocab_size, vocabulary.tokenizer.eot_id)
        warnings += [line for files_ in (train, validation) for line in module.NAMES.find_missing(files_, ids)]
    for line in warnings:
        progress.warn(line)
    described = ImportFiles(train, validation, getattr(module, function))
    is_new = build_from_tokens(
        plan_import(settings, described, vocabulary), folder, name=name, replace=replace, progress=progress
    )
    made = Build(folder)
    headline = f"{'imported' if is_new else 'already imported, nothing to do:'} {folder}"
    output.write({**describe(made), "is_new": is_new}, [headline, *summarize(made)])
