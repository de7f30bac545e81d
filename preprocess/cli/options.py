"""The options that choose a text and how it is processed, shared by the commands that read text."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from preprocess.recipes.schema import CHOICES, CLEANING_RULES

if TYPE_CHECKING:
    from preprocess.recipes.schema import Recipe

Command = Callable[..., Any]
MAX_WORKERS = 256

INPUT_OPTIONS = [
    click.option(
        "--corpus",
        metavar="NAME",
        help="A built-in corpus (listed by `preprocess corpora`), or the path of your own recipe, such as mine.toml.",
    ),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="PATH",
        help="Your own text: a file, a folder, a quoted glob, a URL (hf://datasets/OWNER/NAME[@REVISION][/PATH], "
        "https://, s3://), or - for standard input. May be repeated.",
    ),
    click.option(
        "--source",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A local copy of the corpus' file, used instead of a download.",
    ),
    click.option(
        "--format",
        type=click.Choice(CHOICES["format"][:-1]),
        help="Format of the files.  [default: determined by their contents and names]",
    ),
    click.option(
        "--document", type=click.Choice(CHOICES["document"]), help="How a text file is divided into documents."
    ),
    click.option("--separator", metavar="TEXT", help="Text between two documents; \\n means a line feed."),
    click.option(
        "--text-column",
        metavar="COLUMN",
        help="Column that holds the text; in JSON also a nested value, such as meta.text.  [default: text]",
    ),
    click.option(
        "--template",
        metavar="TEXT",
        help='Join several columns into the text, for example "Q: {question}\\nA: {answer}".',
    ),
    click.option(
        "--where",
        metavar="CONDITION",
        help="Read only the rows that satisfy a condition, for example 'language == \"en\" and score >= 0.5'.",
    ),
    click.option(
        "--delimiter",
        metavar="CHAR",
        help="Character between the values of a CSV file; \\t means a tab.  [default: found in the header]",
    ),
    click.option("--escape", metavar="CHAR", help="Character before a quote that is part of a CSV value, often '\\'."),
    click.option(
        "--quotes/--no-quotes", default=None, help="Whether quotes enclose values of a CSV file, or are characters."
    ),
    click.option(
        "--json-field",
        metavar="NAME",
        help="Field of a JSON file that holds the array of records.  [default: the only array of objects]",
    ),
    click.option("--author-column", metavar="COLUMN", help="Column that holds the author."),
    click.option("--city-column", metavar="COLUMN", help="Column that holds the city."),
    click.option("--year-column", metavar="COLUMN", help="Column that holds the year."),
    click.option("--lang-column", metavar="COLUMN", help="Column that holds the language."),
    click.option(
        "--group-column", metavar="COLUMN", help="Column that holds the group; a group is never split."
    ),
    click.option(
        "--split-column", metavar="COLUMN", help="Column that holds train or val, for --split given."
    ),
    click.option("--author", metavar="NAME", help="Author, unless a column or the file name gives it."),
    click.option("--city", metavar="NAME", help="City, unless a column or the file name gives it."),
    click.option("--year", type=int, metavar="N", help="Year, unless a column or the file name gives it."),
    click.option("--lang", metavar="TAG", help="Language, unless a column or the file name gives it."),
    click.option(
        "--name-pattern",
        metavar="REGEX",
        help="Read metadata from the names of the files, for example '(?P<year>\\d{4})-(?P<author>\\w+)'.",
    ),
    click.option(
        "--group-by",
        type=click.Choice(CHOICES["group_by"]),
        help="Keep in one split: equal documents, documents at the same position of several files, or whole files.",
    ),
    click.option(
        "--encoding",
        metavar="NAME",
        help="Encoding of text, JSON and CSV files, such as cp1251.  [default: UTF-8, or UTF-16 if it is recognised]",
    ),
    click.option(
        "--invalid-utf8", type=click.Choice(CHOICES["invalid_utf8"]), help="What to do with text that is not UTF-8."
    ),
    click.option(
        "--oversized",
        type=click.Choice(CHOICES["oversized"]),
        help="What to do with a record that is too long and cannot be divided.",
    ),
]  # fmt: skip

PROCESSING_OPTIONS = [
    click.option("--max-documents", type=int, metavar="N", help="Keep N documents, drawn at random with --seed."),
    click.option(
        "--clean", metavar="RULE,…", help=f"Cleaning rules, separated by commas: {', '.join(CLEANING_RULES)}; or none."
    ),
    click.option("--min-characters", type=int, metavar="N", help="Drop documents with fewer than N characters."),
    click.option("--max-characters", type=int, metavar="N", help="Drop documents with more than N characters."),
    click.option("--dedup/--no-dedup", default=None, help="Drop documents that are equal to an earlier one."),
    click.option(
        "--split", type=click.Choice(CHOICES["split"]), help="How documents are divided into train and val."
    ),
    click.option(
        "--val-fraction", type=float, metavar="F", help="Fraction of the documents in the val split; 0 for none."
    ),
    click.option(
        "--authors/--no-authors",
        default=None,
        help="Put control tokens for author, city and year before each document.",
    ),
    click.option(
        "--bos/--no-bos",
        default=None,
        help="Put the begin-of-text token before each document, if the tokenizer has one.",
    ),
    click.option(
        "--eot",
        type=click.Choice(CHOICES["eot"]),
        help="Whether an end-of-text token follows each document; auto: if the tokenizer has one.  [default: auto]",
    ),
    click.option(
        "--tokenizer",
        metavar="NAME",
        help="gpt2, sentencepiece, char, byte, another tiktoken encoding, or a tokenizer's file or folder.",
    ),
    click.option("--num-pieces", type=int, metavar="N", help="Vocabulary size of a sentencepiece tokenizer."),
    click.option("--num-pairs", type=int, metavar="N", help="Number of sentence pairs in the synthetic corpus."),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        help="Seed of the split, of --max-documents and of the synthetic corpus.",
    ),
]  # fmt: skip


def recipe_options(command: Command) -> Command:
    """Add the options that choose a recipe to a command, which passes them to `RecipeOptions`."""
    for option in reversed(INPUT_OPTIONS + PROCESSING_OPTIONS):
        command = option(command)
    return command


class RecipeOptions:
    """The values of the options that `recipe_options` adds.

    Options that are not given are unset.
    """

    def __init__(self, corpus: str | None, inputs: tuple[str, ...], source: Path | None, **settings: Any) -> None:
        self.corpus, self.inputs, self.source, self.settings = corpus, inputs, source, settings
        self.has_text = corpus is not None or bool(inputs)

    def load_recipe(self, **overrides: Any) -> Recipe:
        """Return the recipe of the corpus, changed by the given options and then by `overrides`.

        Raises UsageError if neither a corpus nor input files are given, MisuseError if a setting is
        invalid.
        """
        from preprocess.recipes.catalog import load_recipe

        if not self.has_text:
            raise click.UsageError("no text to read: pass --corpus NAME, or --input PATH with your own files")
        settings = self.settings | overrides
        for name in ("template", "separator", "delimiter"):
            settings[name] = _unescape(settings[name])
        if settings["clean"] is not None:
            settings["clean"] = tuple(rule for rule in settings["clean"].split(",") if rule != "none")
        recipe = load_recipe(self.corpus, inputs=self.inputs or None, **settings)
        if any(name.lower().endswith(".parquet") for name in (*recipe.inputs, *(file.name for file in recipe.files))):
            from preprocess.readers.parquet_examiner import start_examiner

            start_examiner()  # it imports Arrow while this process imports the rest of Folio
        return recipe


def workers_option(help: str = "Number of processes.") -> Callable[[Command], Command]:
    """Return the option --workers. If it is unset, the command calls `get_default_num_workers`."""
    return click.option(
        "--workers",
        type=click.IntRange(1, MAX_WORKERS),
        metavar="N",
        help=f"{help}  [default: the number of cores, at most 8]",
    )


def num_documents_option(default: int) -> Callable[[Command], Command]:
    """Return the option -n: how many documents a command reads."""
    return click.option(
        "-n",
        "num_documents",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        metavar="N",
        help="Number of documents to read.",
    )


def _unescape(text: str | None) -> str | None:
    """Replace `\\n`, `\\t` and `\\\\` by a line feed, a tab and a backslash.

    Most shells pass these escapes on unchanged.
    """
    if text is None:
        return None
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)
