"""`preprocess list`, `show`, `stats` and `verify`: commands that read existing builds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from preprocess.cli.completion import complete_build
from preprocess.cli.output import Output, format_table, output_options
from preprocess.cli.screens import show_build, show_stats
from preprocess.cli.show_document import find_number, show_document
from preprocess.errors import FolioError, format_quantity, one_line
from preprocess.terminal import Grid

if TYPE_CHECKING:
    from preprocess.shards.files import JsonObject
    from preprocess.shards.format import Build
    from preprocess.shards.leaks import Leaks

LIST_HEADER = ("name", "tokenizer", "vocabulary", "train tokens", "val tokens", "documents")


@click.command("list")
@output_options
def list_command(output: Output) -> None:
    """List the builds in shards/, or in $FOLIO_SHARDS."""
    from preprocess.shards.format import Build, default_root, list_builds

    folders = list_builds(default_root())
    if not folders and not output.quiet:
        hint = f"no builds in {default_root()}; `preprocess build --corpus NAME` makes one"
        click.echo(one_line(hint), err=True)
    results: list[JsonObject] = []
    rows: list[tuple[str, ...]] = [LIST_HEADER]
    for folder in folders:
        try:
            facts = describe(Build(folder)) | {"name": folder.name}
            splits = facts["splits"]
            num_documents = sum(split["documents"] for split in splits.values())
            counts = (facts["vocab_size"], splits["train"]["tokens"], splits["val"]["tokens"], num_documents)
            rows.append((folder.name, facts["tokenizer"], *(f"{count:,}" for count in counts)))
        except (FolioError, OSError) as e:
            facts = {"name": folder.name, "folder": str(folder), "error": str(e)}
            rows.append((folder.name, f"damaged: {e}", "", "", "", ""))
        results.append(facts)
    output.write(
        results,
        format_table(rows, num_text_columns=2) if folders else [],
        lambda: [Grid(header=rows[0], rows=rows[1:], num_text_columns=2)],
    )


@click.command()
@click.argument("name", shell_complete=complete_build)
@click.option("--document", type=int, metavar="N", help="Decode document N of the split, counted from 0.")
@click.option("--find", "text", metavar="TEXT", help="Decode the first document of the split that contains TEXT.")
@click.option(
    "--split",
    type=click.Choice(["train", "val"]),
    default="train",
    show_default=True,
    help="The split that contains the document.",
)
@click.option("--tokens", is_flag=True, help="Show the tokens of the document instead of its text.")
@output_options
def show(output: Output, name: str, document: int | None, text: str | None, split: str, tokens: bool) -> None:
    """Show what a build contains, or decode one of its documents.

    NAME is the name or the folder of a build. With --document or --find, the text of the document is
    written to standard output. Its number, its position in its source file, and the control tokens
    before and after it are written to standard error. A file or pipe
    gets the exact bytes of the text; on a terminal, control characters are escaped. A document of a
    build with chats is written with the control tokens between its turns; on a terminal, the text
    that a model is trained to write is green.

    With --tokens, a terminal shows where each token begins and ends, by its tint. A file, a pipe, or a
    terminal with NO_COLOR gets a line for each token: the id, a tab, and the text.
    """
    from preprocess.shards.format import Build

    if document is not None and text is not None:
        raise click.UsageError("--document and --find both choose a document; pass one of them")
    if text == "":
        raise click.UsageError("--find is empty; name some characters of the document, or pass --document N")
    build = Build(name)
    if text is not None:
        document = find_number(build, split, text)
    if document is None:
        if tokens:
            raise click.UsageError("--tokens needs a document: pass --document or --find")
        facts = describe(build)
        output.write(facts, summarize(build), lambda: show_build(facts, build.name))
        return
    show_document(output, build, split, document, tokens=tokens)


@click.command()
@click.argument("name", shell_complete=complete_build)
@output_options
def stats(output: Output, name: str) -> None:
    """Print the statistics of a build.

    NAME is the name or the folder of a build. The statistics are the numbers of documents that were
    kept, dropped and cleaned, the documents and tokens by split and language, the most frequent
    authors, cities and years, and the lengths of documents. With --json, the build's file
    stats.json is printed unchanged.
    """
    from preprocess.build.stats import format_stats, read_stats
    from preprocess.shards.format import Build

    build = Build(name)
    with build.reading():
        data = read_stats(build)
    if output.as_json:
        click.echo(data, nl=False)
    else:
        output.write(None, format_stats(data), lambda: show_stats(data))


@click.command()
@click.argument("name", shell_complete=complete_build)
@click.option("--leaks", is_flag=True, help="Also look for texts that are in both splits.")
@output_options
def verify(output: Output, name: str, leaks: bool) -> None:
    """Compare the hashes of a build's files with its manifest.

    NAME is the name or the folder of a build. All files except build_log.json are compared. The
    exit status is 1 if a file differs, and with --leaks also if a text is in both train and val.
    Texts are compared by the hash of their content.
    """
    from preprocess.shards.format import find_build
    from preprocess.shards.verify import verify_newest

    progress = output.progress()
    with progress.phase("verify"):
        build, faults = verify_newest(find_build(name))
    result: JsonObject = {"folder": str(build.folder), "build_id": build.build_id, "faults": faults}
    if faults:
        output.write(result, [])
        for fault in faults:
            click.echo(one_line(fault), err=True)
        raise FolioError(
            f"{build.folder} is damaged ({format_quantity(len(faults), 'fault')}, listed above); "
            "copy the build again or rebuild it"
        )
    lines = [f"{build.folder} is intact: build {build.build_id}"]
    if not leaks:
        output.write(result, lines)
        return
    with progress.phase("verify: look for leaks"):
        found = _find_leaks(build)
    result["leaks"] = dataclasses.asdict(found)
    output.write(result, lines if found.num_texts else [*lines, "no text is in both train and val"])
    if found.num_texts:
        for train, val in found.examples:
            line = f"train document {train.document:,} ({train.shard}) = val document {val.document:,} ({val.shard})"
            click.echo(one_line(line), err=True)
        raise FolioError(
            f"{format_quantity(found.num_texts, 'text')} of {build.folder} {'is' if found.num_texts == 1 else 'are'} "
            "in both train and val (examples above); build with --dedup to keep each text once"
        )


def _find_leaks(build: Build) -> Leaks:
    from preprocess.shards.leaks import count_leaks

    leaks = count_leaks(build)
    build.check_unreplaced()
    return leaks


def describe(build: Build) -> JsonObject:
    """Return the main facts about a build, as `preprocess show --json` prints them."""
    manifest = build.manifest
    return {
        "name": build.name,
        "folder": str(build.folder),
        "build_id": build.build_id,
        "tokenizer": manifest.tokenizer.kind,
        "vocab_size": build.vocab_size,
        "control_tokens": len(manifest.special_tokens),
        "dtype": manifest.dtype,
        "splits": {
            split: {
                "documents": entry.documents,
                "tokens": entry.tokens,
                "text_bytes": entry.text_bytes,
                "shards": len(entry.shards),
            }
            for split, entry in manifest.splits.items()
        },
    }


def summarize(build: Build) -> list[str]:
    """Return the main facts about a build, as `preprocess show` prints them."""
    facts = describe(build)
    lines = [
        f"  build      {facts['build_id']}",
        f"  tokenizer  {facts['tokenizer']}, {facts['vocab_size']:,} ids, {facts['control_tokens']:,} of them control "
        f"tokens, {facts['dtype']}",
    ]
    for split, counts in facts["splits"].items():
        tokens, documents, num_bytes = (
            f"{counts[key]:>{width},} {noun}{'s' if counts[key] != 1 else ' '}"
            for key, width, noun in (("tokens", 13, "token"), ("documents", 9, "document"), ("text_bytes", 13, "byte"))
        )
        shards = format_quantity(counts["shards"], "shard")
        lines.append(f"  {split:9}  {tokens}  {documents}  {num_bytes} of text  {shards}")
    return lines
