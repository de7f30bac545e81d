"""The command `preprocess`: parse, call one function, print its result; nothing else.

Nothing heavy is imported up here, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from preprocess import __version__
from preprocess.errors import FolioError, explain_os_error, one_line, printable
from preprocess.recipes.schema import CHOICES, CLEANING_RULES, COLUMN_SETTINGS

INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it


class _Group(click.Group):
    """Turns every way a command can end badly, click's own included, into one line and a status."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.UsageError as e:
            help_command = f"{e.ctx.command_path if e.ctx else 'preprocess'} --help"
            _fail(f"{_shorten(e.format_message())}; `{help_command}` tells what there is", e.exit_code)
        except FolioError as e:
            _fail(str(e), e.exit_status)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains again while it exits
            sys.exit(1)
        except OSError as e:
            _fail(explain_os_error(e), 1)
        except MemoryError:
            _fail("out of memory; use fewer --workers, or a machine with more", 1)
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted; run the same command again, it goes on where it was", INTERRUPTED_STATUS)


def _shorten(message: str) -> str:
    """click's message on one line; a shell that spelled out a glob may have put a thousand names into it."""
    message = " ".join(message.split()).rstrip(".")
    if "unexpected extra argument" in message:
        return f"{message[:120]}{'…' if len(message) > 120 else ''}: files are named by --input, a glob in quotes"
    return message


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"error: {one_line(message)}", err=True)
    sys.exit(status)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="preprocess")
def main() -> None:
    """Folio: raw text in, token shards out.

    Builds land in shards/NAME, or under $FOLIO_SHARDS.
    """


COLUMNS = {
    name: f"Column of the {name.removesuffix('_column')}."
    for name in COLUMN_SETTINGS
    if name not in ("text_column", "split_column")
}


def _source_options() -> list[Any]:
    """What is read."""
    return [
        click.option(
            "--corpus",
            metavar="NAME",
            help="A built-in corpus (`preprocess corpora`), or a recipe of your own: path/to/mine.toml.",
        ),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="PATH",
            help="Your own files: a file, a folder, or a glob in quotes; may be repeated.",
        ),
        click.option(
            "--source",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A copy of the corpus' one file; skips the network.",
        ),
        click.option(
            "--format", type=click.Choice(CHOICES["format"][:-1]), help="Of the files, where their names do not tell."
        ),
        click.option("--document", type=click.Choice(CHOICES["document"]), help="What one document of a text file is."),
        click.option("--separator", metavar="TEXT", help="What stands between documents; \\n is a line feed."),
        click.option("--text-column", metavar="COLUMN", help="Column of the text.  [default: text]"),
        click.option("--template", metavar="TEXT", help='Joins columns to a text: "Q: {question}\\nA: {answer}".'),
        click.option("--where", metavar="CONDITION", help="Rows to take: 'language == \"en\" and score >= 0.5'."),
        *(click.option(f"--{name.replace('_', '-')}", metavar="COLUMN", help=text) for name, text in COLUMNS.items()),
        click.option("--split-column", metavar="COLUMN", help="Column of the side, for --split given."),
        click.option(
            "--author", metavar="NAME", help="Of every document that names none; --city, --year and --lang likewise."
        ),
        click.option("--city", metavar="NAME", hidden=True),
        click.option("--year", type=int, metavar="N", hidden=True),
        click.option("--lang", metavar="TAG", hidden=True),
        click.option(
            "--name-pattern", metavar="REGEX", help="Metadata from files' names: '(?P<year>\\d{4})-(?P<author>\\w+)'."
        ),
        click.option("--group-by", type=click.Choice(CHOICES["group_by"]), help="What may not straddle the split."),
        click.option(
            "--invalid-utf8", type=click.Choice(CHOICES["invalid_utf8"]), help="What to do where text is not UTF-8."
        ),
        click.option(
            "--oversized", type=click.Choice(CHOICES["oversized"]), help="What to do with a record too long to be cut."
        ),
    ]


def _treatment_options() -> list[Any]:
    """What happens to it."""
    return [
        click.option("--max-documents", type=int, metavar="N", help="Keep N documents, drawn by --seed."),
        click.option("--clean", metavar="RULE,…", help=f"Cleaning rules, of {', '.join(CLEANING_RULES)}; or none."),
        click.option("--min-characters", type=int, metavar="N", help="Leave shorter documents out."),
        click.option("--max-characters", type=int, metavar="N", help="Leave longer documents out."),
        click.option("--dedup/--no-dedup", default=None, help="Leave out documents equal to an earlier one."),
        click.option(
            "--split", type=click.Choice(CHOICES["split"]), help="How training and validation are told apart."
        ),
        click.option("--val-fraction", type=float, metavar="F", help="Share of the validation split."),
        click.option(
            "--authors/--no-authors", default=None, help="Put author, city and year tokens in front of each document."
        ),
        click.option("--eot", type=click.Choice(CHOICES["eot"]), help="End-of-text token behind each document."),
        click.option(
            "--tokenizer",
            metavar="NAME",
            help="gpt2, sentencepiece, char, byte, another tiktoken encoding, or a tokenizer's file.",
        ),
        click.option("--num-pieces", type=int, metavar="N", help="Vocabulary of a sentencepiece tokenizer."),
        click.option("--num-pairs", type=int, metavar="N", help="Sentence pairs of the synthetic corpus."),
        click.option(
            "--seed", type=int, metavar="N", help="Decides the split, what is drawn, and the synthetic corpus."
        ),
    ]


def _recipe_options(command: Any) -> Any:
    """The settings of a recipe that a build and a sample of one can be given."""
    for option in reversed(_source_options() + _treatment_options()):
        command = option(command)
    return command


def _unescape(text: str | None) -> str | None:
    """What a shell cannot type easily: `\\n`, `\\t` and `\\\\` as a line feed, a tab and a backslash."""
    if text is None:
        return None
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)


def _load(corpus: str | None, inputs: tuple[str, ...], clean: str | None, overrides: dict[str, Any]) -> Any:
    """The recipe that the options ask for."""
    from preprocess.recipes.catalog import load_recipe

    if corpus is None and not inputs:
        raise click.UsageError("nothing to build from: pass --corpus NAME, or --input with your own files")
    for name in ("template", "separator"):
        overrides[name] = _unescape(overrides[name])
    rules = None if clean is None else tuple(rule for rule in clean.split(",") if clean != "none")
    return load_recipe(corpus, inputs=inputs or None, clean=rules, **overrides)


@main.command()
@_recipe_options
@click.option("--shard-tokens", type=int, metavar="N", help="A shard ends at the document that takes it to N tokens.")
@click.option("--name", metavar="NAME", help="Name of the build.  [default: the corpus, or own]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to build in place of shards/NAME."
)
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Processes to work in.  [default: the cores, at most 8]"
)
@click.option("--replace", is_flag=True, help="Replace another build of this name.")
@click.option("--quiet", is_flag=True, help="Print the result and warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build(
    corpus: str | None, inputs: tuple[str, ...], source: Path | None, name: str | None, output: Path | None, clean: str | None,
    workers: int | None, replace: bool, quiet: bool, as_json: bool, **overrides: Any,
) -> None:  # fmt: skip
    """Build token shards from a corpus or from your own files.

    What is not given comes from the corpus' recipe. Run again, the same command finds its build there and does nothing; a build that
    was interrupted goes on where it was.
    """
    from preprocess.build.engines.local import default_workers, warm_up
    from preprocess.inputs.find_inputs import is_larger
    from preprocess.inputs.input_files import PARTITION_BYTES

    recipe = _load(corpus, inputs, clean, overrides)
    workers = workers or default_workers()
    if workers > 1 and is_larger(recipe, PARTITION_BYTES):
        warm_up()  # half a second that passes while this process imports and hashes

    from preprocess.build.build import build as run_build
    from preprocess.progress import Progress
    from preprocess.shards.format import Build, check_name, default_root

    name = check_name(recipe.corpus if name is None else name)
    folder = default_root() / name if output is None else output
    # A build cleans up after itself on the way out; SIGTERM takes the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    progress = Progress(quiet=quiet or as_json)
    is_new = run_build(recipe, folder, name=name, source=source, replace=replace, progress=progress, workers=workers)
    made = Build(folder)
    if as_json:
        import json

        splits = {
            split: {k: entry[k] for k in ("documents", "tokens", "text_bytes")}
            for split, entry in made.manifest["splits"].items()
        }
        result = {
            "folder": str(made.folder),
            "build_id": made.build_id,
            "is_new": is_new,
            "vocab_size": made.vocab_size,
            "splits": splits,
        }
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    click.echo(f"{'built' if is_new else 'already built, nothing to do:'} {one_line(str(folder))}")
    click.echo(_summary(made))


def _interrupt() -> None:
    raise KeyboardInterrupt


@main.command("list")
def list_command() -> None:
    """List the builds in shards/ (or $FOLIO_SHARDS)."""
    from preprocess.shards.format import Build, default_root, list_builds

    builds = list_builds(default_root())
    if not builds:
        click.echo(
            f"no builds in {one_line(str(default_root()))}; `preprocess build --corpus NAME` makes one", err=True
        )
        return
    rows: list[tuple[str, ...]] = [("name", "tokenizer", "vocabulary", "train tokens", "val tokens", "documents")]
    for folder in builds:
        try:
            m = Build(folder).manifest
            documents = sum(split["documents"] for split in m["splits"].values())
            counts = (m["vocab_size"], m["splits"]["train"]["tokens"], m["splits"]["val"]["tokens"], documents)
            rows.append((folder.name, m["tokenizer"]["kind"], *(f"{n:,}" for n in counts)))
        except (FolioError, OSError) as e:
            rows.append((folder.name, f"damaged: {e}", "", "", "", ""))
    _table(rows)


def _table(rows: list[tuple[str, ...]]) -> None:
    # A damaged build's reason may be long: it runs over, it does not widen the columns.
    widths = [max(len(row[i]) for row in rows if row[-1] or i == 0) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        click.echo(one_line("  ".join(cells).rstrip()))


@main.command()
@click.argument("name")
@click.option("--document", type=int, metavar="N", help="Decode document N of the split, counted from 0.")
@click.option(
    "--split", type=click.Choice(["train", "val"]), default="train", show_default=True, help="Where --document counts."
)
def show(name: str, document: int | None, split: str) -> None:
    """Tell what a build holds, or decode one of its documents. NAME: a build or its folder."""
    from preprocess.shards.format import Build

    made = Build(name)
    if document is None:
        click.echo(_summary(made))
        return
    from preprocess.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(made.folder, made.manifest)
    spelled = {i: text for text, i in made.manifest["special_tokens"].items()}
    ids = made.document(split, document)
    is_control = [int(i) in spelled for i in ids]
    front = next((i for i, control in enumerate(is_control) if not control), len(ids))
    back = len(ids) - next((i for i, control in enumerate(reversed(is_control)) if not control), 0)
    controls = (
        " ".join(spelled[int(i)] for i in ids[:front]),
        " ".join(spelled[int(i)] for i in ids[max(front, back) :]),
    )
    # Control tokens stand on lines of their own, on stderr: what stdout gets is the document's text and nothing else.
    click.echo(one_line(controls[0]), err=True)
    text = tokenizer.decode_bytes(ids[front : max(front, back)])
    if sys.stdout is not None and sys.stdout.isatty():
        click.echo(printable(text.decode("utf-8", errors="replace")), nl=False)
    else:
        click.echo(text, nl=False)  # bytes: a file or pipe gets the document exactly, whatever the locale
    click.echo(one_line(controls[1]), err=True)


@main.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print stats.json as it is.")
def stats(name: str, as_json: bool) -> None:
    """Tell what a build counted: documents, languages, authors, lengths, cleaning. NAME: a build or its folder."""
    from preprocess.build.stats import format_stats, read_stats
    from preprocess.shards.format import Build

    data = read_stats(Build(name))
    if as_json:
        click.echo(data, nl=False)
    else:
        click.echo("\n".join(map(one_line, format_stats(data))))


@main.command()
def corpora() -> None:
    """List the built-in corpora with their size and licence."""
    from preprocess.recipes.catalog import builtin_corpora, load_recipe

    rows: list[tuple[str, ...]] = [("name", "licence", "size", "what it is")]
    for name in builtin_corpora():
        recipe = load_recipe(name)
        num_bytes = sum(file.bytes for file in recipe.files)
        size = f"{num_bytes:,} bytes" if num_bytes else recipe.size
        where = f"; --input with the Parquet files of {recipe.hub}" if recipe.hub else ""
        rows.append((name, recipe.licence, size, recipe.description + where))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        click.echo(one_line("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])))


@main.command()
@click.argument("name")
def verify(name: str) -> None:
    """Re-hash every file of a build and compare with its manifest. NAME: a build or its folder."""
    from preprocess.shards.format import Build
    from preprocess.shards.verify import verify as find_faults

    made = Build(name)
    faults = list(find_faults(made))
    for fault in faults:
        click.echo(one_line(fault), err=True)
    if faults:
        raise FolioError(f"{made.folder} is damaged, {len(faults)} faults above; copy the build again or rebuild it")
    click.echo(f"{one_line(str(made.folder))} is whole: build {made.build_id}")


@main.command()
@click.argument("name")
@click.option(
    "--format", "format_", type=click.Choice(["nanogpt", "text"]), required=True, help="Whose files to write."
)
@click.option("--by", type=click.Choice(["language"]), help="Text only: a file for each language.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write them to."
)
@click.option("--replace", is_flag=True, help="Write over files that are there.")
def export(name: str, format_: str, by: str | None, output: Path, replace: bool) -> None:
    """Write a build in another tool's format, or as text. NAME: a build or its folder."""
    from preprocess.exchange.nanogpt import export_nanogpt
    from preprocess.exchange.text import export_text
    from preprocess.shards.format import Build

    if by is not None and format_ != "text":
        raise click.UsageError("--by goes with --format text")
    if format_ == "text":
        paths = export_text(Build(name), output, by_language=by is not None, replace=replace)
    else:
        paths = export_nanogpt(Build(name), output, replace=replace)
    for path in paths:
        click.echo(f"{one_line(str(path))}  {os.path.getsize(path):,} bytes")


@main.command()
@_recipe_options
@click.option(
    "-n",
    "num_documents",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    metavar="N",
    help="Documents to look at.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Of the build that is foreseen.  [default: the cores, at most 8]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def estimate(
    corpus: str | None, inputs: tuple[str, ...], source: Path | None, clean: str | None, num_documents: int, workers: int | None,
    as_json: bool, **overrides: Any,
) -> None:  # fmt: skip
    """Tell what a build would be like: tokens per document, speed, and the time, disk and memory it will need."""
    from preprocess.build.engines.local import default_workers
    from preprocess.build.estimate import estimate_build, format_estimate
    from preprocess.build.plan import make_plan
    from preprocess.progress import Progress

    plan = make_plan(_load(corpus, inputs, clean, overrides), source, Progress(quiet=True))
    result = estimate_build(plan, num_documents, workers=workers or default_workers())
    if as_json:
        import json

        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        click.echo("\n".join(map(one_line, format_estimate(result))))


@main.group()
def tokenizer() -> None:
    """Train a tokenizer on its own, or look at one."""


@tokenizer.command()
@_recipe_options
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write it to.")
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Processes to work in.  [default: the cores, at most 8]"
)
@click.option("--replace", is_flag=True, help="Write over a tokenizer that is there.")
@click.option("--quiet", is_flag=True, help="Print the result and warnings only.")
def train(
    corpus: str | None, inputs: tuple[str, ...], source: Path | None, clean: str | None, output: Path, workers: int | None,
    replace: bool, quiet: bool, **overrides: Any,
) -> None:  # fmt: skip
    """Train SentencePiece pieces, or collect the characters, of a corpus' training documents; `build --tokenizer DIR` uses them."""
    from preprocess.build.build import train_alone
    from preprocess.build.engines.local import default_workers
    from preprocess.progress import Progress

    recipe = _load(corpus, inputs, clean, {**overrides, "tokenizer": overrides["tokenizer"] or "sentencepiece"})
    progress = Progress(quiet=quiet)
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    made = train_alone(
        recipe, output, source=source, replace=replace, progress=progress, workers=workers or default_workers()
    )
    click.echo(
        f"trained {made.kind} with {made.vocab_size:,} ids: {', '.join(one_line(str(output / name)) for name in made.files)}"
    )


@tokenizer.command()
@click.argument("name")
@_recipe_options
@click.option(
    "-n",
    "num_documents",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Documents to look at.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    name: str, corpus: str | None, inputs: tuple[str, ...], source: Path | None, clean: str | None, num_documents: int, as_json: bool,
    **overrides: Any,
) -> None:  # fmt: skip
    """Tell how well a tokenizer fits a text: coverage, tokens per word and bytes per token, by language.

    NAME: a tokenizer (gpt2, a file, a folder) with --corpus or --input; or else a build, whose validation documents are looked at.
    """
    from preprocess.build.inspect_tokenizer import inspect_build, inspect_named
    from preprocess.build.plan import make_plan
    from preprocess.progress import Progress
    from preprocess.shards.format import MANIFEST, Build
    from preprocess.tokenizers import tokenizer_names
    from preprocess.tokenizers.inspect import format_inspection

    if corpus is None and not inputs:
        if ("/" not in name and name in tokenizer_names()) or (
            Path(name).exists() and not (Path(name) / MANIFEST).is_file()
        ):
            raise click.UsageError(f"{name} is a tokenizer: pass --corpus or --input with the text to try it on")
        found = inspect_build(Build(name), num_documents)
    else:
        recipe = _load(corpus, inputs, clean, {**overrides, "tokenizer": "byte"})  # no other is to be trained for this
        found = inspect_named(name, make_plan(recipe, source, Progress(quiet=True)), num_documents)
    if as_json:
        import json

        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        click.echo("\n".join(map(one_line, format_inspection(found))))


def _summary(made: Any) -> str:
    m = made.manifest
    lines = [
        f"  build      {m['build_id']}",
        f"  tokenizer  {m['tokenizer']['kind']}, {m['vocab_size']:,} ids of which {len(m['special_tokens']):,} control, {m['dtype']}",
    ]
    for split, entry in m["splits"].items():
        counts = f"{entry['tokens']:>13,} tokens  {entry['documents']:>9,} documents  {entry['text_bytes']:>13,} bytes of text"
        lines.append(f"  {split:9}  {counts}  {len(entry['shards'])} shard{'s' if len(entry['shards']) != 1 else ''}")
    return "\n".join(map(one_line, lines))
