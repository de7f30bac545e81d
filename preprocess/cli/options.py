"""The options for the text to read and its processing, which all commands that read text share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from preprocess.cli.completion import complete_corpus, complete_path
from preprocess.recipes.filter_settings import (
    FILTERS,
    PII_POLICIES,
    PRESETS,
    Language,
    Perplexity,
    Pii,
    expand_filters,
    format_filter,
    parse_filter,
)
from preprocess.recipes.schema import CHOICES, CLEANING_RULES

if TYPE_CHECKING:
    from preprocess.recipes.schema import Recipe

Command = Callable[..., Any]
MAX_WORKERS = 256
NUM_FILE_OPTIONS = 3  # the first options of INPUT_OPTIONS name the files: --corpus, --input and --source
# The settings of the options that `format_options` does not add.
NO_PROCESSING: dict[str, Any] = {
    "clean": None, "decontaminate": (), "pii": None, "languages": None, "min_language_score": None, "quality": None,
    "filters": (), "filter_by_model": None, "min_bits": None, "max_bits": None,
}  # fmt: skip

INPUT_OPTIONS = [
    click.option(
        "--corpus",
        metavar="NAME",
        shell_complete=complete_corpus,
        help="A built-in corpus (listed by `preprocess corpora`), or the path of your own recipe, such as mine.toml.",
    ),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="PATH",
        shell_complete=complete_path,
        help="Your own text: a file, a folder, a quoted glob, a URL (hf://datasets/OWNER/NAME[@REVISION][/PATH], "
        "https://, s3://), or - for standard input. May be repeated.",
    ),
    click.option(
        "--source",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A local copy of the file of a built-in corpus that has one file, used instead of a download.",
    ),
    click.option(
        "--format",
        type=click.Choice(CHOICES["format"][:-1]),
        help="Format of the files.  [default: determined by their contents and names]",
    ),
    click.option(
        "--document",
        type=click.Choice(CHOICES["document"]),
        help="What becomes one document of a text file: the file, a line, a paragraph (up to a blank line), a passage "
        "(about 2,000 characters, cut at blank lines), or the text between separators.",
    ),
    click.option(
        "--separator",
        metavar="TEXT",
        help="With --document separator: the text between two documents; \\n means a line feed, \\r a carriage return.",
    ),
    click.option(
        "--text-column",
        metavar="COLUMN",
        help="Column that holds the text, or a nested value, such as meta.text.  [default: text]",
    ),
    click.option(
        "--template",
        metavar="TEXT",
        help='Join several columns into the text, for example "Q: {question}\\nA: {answer}".',
    ),
    click.option(
        "--chat-columns",
        metavar="NAMES",
        help="Columns of chats or instructions: messages, prompt,completion or instruction,input,output, or other "
        "names in their place.  [default: looked for if the input does not have the text column]",
    ),
    click.option(
        "--chat-template",
        type=click.Choice(CHOICES["chat_template"]),
        help="Control tokens that mark the turns of a chat; without chats they are reserved in the vocabulary.  "
        "[default: nanochat if there are chats]",
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
        "--quotes/--no-quotes",
        default=None,
        help="Whether quotes can enclose a value of a CSV file, or are ordinary characters.",
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
        "--group-column",
        metavar="COLUMN",
        help="Column that holds the group; all documents of a group are in one split.",
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
        help="Documents that are kept in one split: equal ones (content), those at the same position of "
        "several files (position), or those of the same file (source).",
    ),
    click.option(
        "--encoding",
        metavar="NAME",
        help="Encoding of text, JSON and CSV files, such as cp1251.  [default: UTF-8, or UTF-16 if it is recognised]",
    ),
    click.option(
        "--invalid-utf8",
        type=click.Choice(CHOICES["invalid_utf8"]),
        help="What to do with text that is not UTF-8: stop with an error, replace the wrong bytes by U+FFFD, or skip "
        "the record.",
    ),
    click.option(
        "--oversized",
        type=click.Choice(CHOICES["oversized"]),
        help="What to do with a document that is longer than 64 MB and cannot be cut at white space, or with a record "
        "that is too long: stop with an error, or skip it.",
    ),
]  # fmt: skip

PROCESSING_OPTIONS = [
    click.option(
        "--max-documents", type=int, metavar="N", help="Keep at most N documents, in whole groups chosen at random."
    ),
    click.option(
        "--clean", metavar="RULE,…", help=f"Cleaning rules, separated by commas: {', '.join(CLEANING_RULES)}; or none."
    ),
    click.option("--min-characters", type=int, metavar="N", help="Drop documents with fewer than N characters."),
    click.option("--max-characters", type=int, metavar="N", help="Drop documents with more than N characters."),
    click.option(
        "--filter",
        "filters",
        multiple=True,
        metavar="SPEC",
        help="Apply a filter, which drops documents: NAME or NAME:key=value,key=value. NAME is one of "
        f"{', '.join(FILTERS)}. May be repeated; the filters are applied in the given order.",
    ),
    click.option(
        "--quality",
        metavar="PRESET",
        help="Apply the filters of a published pipeline. They are applied before those of --filter. PRESET is one of "
        f"{', '.join(PRESETS)}.",
    ),
    click.option(
        "--languages",
        metavar="CODE,…",
        help="Keep only documents in these languages, such as en,ru. This is the filter language; it is applied before "
        "the filters of --quality and --filter.",
    ),
    click.option(
        "--min-language-score",
        type=float,
        metavar="P",
        help="A document whose most probable language has a probability below P, from 0 to 1, gets the language und "
        "(undetermined). --languages drops it unless the list contains und.  [default: 0.5]",
    ),
    click.option(
        "--pii",
        type=click.Choice(PII_POLICIES),
        help="Replace personal data and keys by masks such as <EMAIL>, or drop the documents that contain any. This is "
        "the filter pii; it is applied before all other filters.",
    ),
    click.option(
        "--filter-by-model",
        metavar="RUN",
        help="Measure the bits per byte that a model needs for the beginning of each document, for --min-bits and "
        "--max-bits. RUN is the out_dir of a run of `folio train`, or a checkpoint in it. This is the filter "
        "perplexity; it is applied after all other filters.",
    ),
    click.option(
        "--min-bits",
        type=float,
        metavar="X",
        help="With --filter-by-model: drop documents for which the model needs fewer than X bits per byte.",
    ),
    click.option(
        "--max-bits",
        type=float,
        metavar="X",
        help="With --filter-by-model: drop documents for which the model needs more than X bits per byte.",
    ),
    click.option("--dedup/--no-dedup", default=None, help="Drop documents that are equal to an earlier one."),
    click.option(
        "--near-dedup",
        type=click.Choice(CHOICES["near_dedup"]),
        is_flag=False,
        flag_value="drop",
        help="Find documents that are nearly equal to an earlier one, and drop them (the default), or keep each group "
        "of them on one side of the split.",
    ),
    click.option(
        "--near-dedup-threshold",
        type=float,
        metavar="FRACTION",
        help="With --near-dedup: the smallest similarity of two documents that count as nearly equal, from 0 to 1. It "
        "is the Jaccard similarity of their sets of five-word sequences.  [default: 0.8]",
    ),
    click.option(
        "--dedup-lines",
        type=click.Choice(CHOICES["dedup_lines"]),
        is_flag=False,
        flag_value="line",
        help="Remove lines (the default) or paragraphs that also occur in an earlier document.",
    ),
    click.option(
        "--dedup-lines-max-documents",
        type=int,
        metavar="N",
        help="With --dedup-lines: instead remove the lines or paragraphs that occur in more than N documents, from all "
        "of these documents.",
    ),
    click.option(
        "--decontaminate",
        multiple=True,
        metavar="FILE",
        help="Drop documents that have 13 words in a row in common with an item of an evaluation set. FILE is a text "
        "file with one item in each line, or a table with one in each row. May be repeated.",
    ),
    click.option(
        "--decontaminate-policy",
        type=click.Choice(CHOICES["decontaminate_policy"]),
        help="With --decontaminate: drop the documents, or only report how many there are.  [default: drop]",
    ),
    click.option(
        "--split",
        type=click.Choice(CHOICES["split"]),
        help="How documents are divided into train and val: by a hash, with exactly the fraction --val-fraction in val "
        "(exact) or about it (threshold); the end of each text file is val (contiguous); or as a column or the file "
        "name says (given).",
    ),
    click.option(
        "--val-fraction",
        type=float,
        metavar="F",
        help="Fraction of the documents, or with --split contiguous of the text, in the val split; 0 for none.",
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
        help="gpt2, sentencepiece, char, byte, another tiktoken encoding, or the path of a tokenizer's file or folder.",
    ),
    click.option("--num-pieces", type=int, metavar="N", help="Vocabulary size of a sentencepiece tokenizer."),
    click.option(
        "--num-pairs", type=int, metavar="N", help="Number of sentence pairs or questions of a synthetic corpus."
    ),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        help="Seed of all random choices, such as the split, and of the synthetic corpus.",
    ),
]  # fmt: skip


def recipe_options(command: Command) -> Command:
    """Add INPUT_OPTIONS and PROCESSING_OPTIONS, which `command` passes to `RecipeOptions`."""
    for option in reversed(INPUT_OPTIONS + PROCESSING_OPTIONS):
        command = option(command)
    return command


def format_options(command: Command) -> Command:
    """Add the options of INPUT_OPTIONS that say how files are read, without those that name the files."""
    for option in reversed(INPUT_OPTIONS[NUM_FILE_OPTIONS:]):
        command = option(command)
    return command


class RecipeOptions:
    """The values of the options that `recipe_options` adds, None or () if they are not given."""

    def __init__(self, corpus: str | None, inputs: tuple[str, ...], source: Path | None, **settings: Any) -> None:
        self.corpus, self.inputs, self.source, self.settings = corpus, inputs, source, settings
        self.has_text = corpus is not None or bool(inputs)

    def load_recipe(self, **overrides: Any) -> Recipe:
        """Return the recipe of the corpus, changed by the given options and then by `overrides`.

        If the recipe reads Parquet or Arrow files, this also starts the process that examines them.
        Raises click.UsageError if neither a corpus nor input files are given, and MisuseError if a
        setting is invalid.
        """
        from preprocess.recipes.catalog import load_recipe

        if not self.has_text:
            raise click.UsageError("no text to read: pass --corpus NAME, or --input PATH with your own files")
        settings = self.settings | overrides
        for name, letters in (("template", "nt"), ("separator", "nrt"), ("delimiter", "nt")):
            settings[name] = _unescape(settings[name], letters)
        if settings["clean"] is not None:
            settings["clean"] = tuple(rule for rule in settings["clean"].split(",") if rule != "none")
        settings["decontaminate"] = settings["decontaminate"] or None
        shorthands = _list_shorthands(settings)
        quality, filters = settings.pop("quality"), settings.pop("filters")
        by_model = _list_model_filters(settings)
        settings["filters"] = (*shorthands, *expand_filters(quality, filters), *by_model) or None
        recipe = load_recipe(self.corpus, inputs=self.inputs or None, **settings)
        names = (*recipe.inputs, *(file.name for file in recipe.files))
        if any(name.lower().endswith((".parquet", ".arrow")) for name in names):
            from preprocess.readers.examiner import start_examiner

            start_examiner()  # the process imports Arrow while this one imports other modules
        return recipe


def _list_shorthands(settings: dict[str, Any]) -> tuple[str, ...]:
    """Remove the options that stand for a filter from `settings`, and return these filters."""
    policy, languages, min_score = (settings.pop(name) for name in ("pii", "languages", "min_language_score"))
    specs = [] if policy is None else [format_filter("pii", Pii(policy=policy))]
    if languages is not None or min_score is not None:
        codes = tuple(code.strip() for code in languages.split(",")) if languages is not None else ()
        language = Language(languages=codes) if min_score is None else Language(languages=codes, min_score=min_score)
        specs.append(format_filter("language", language))
    return tuple(specs)


def _list_model_filters(settings: dict[str, Any]) -> tuple[str, ...]:
    """Remove the options of the filter `perplexity` from `settings`, and return this filter if they are given."""
    run, min_bits, max_bits = (settings.pop(name) for name in ("filter_by_model", "min_bits", "max_bits"))
    if run is None:
        if (min_bits, max_bits) != (None, None):
            raise click.UsageError("--min-bits and --max-bits need a model: pass --filter-by-model RUN")
        return ()
    pairs = {"min_bits": min_bits, "max_bits": max_bits}
    spec = format_filter("perplexity", Perplexity(run=run, **pairs))
    return (format_filter(*parse_filter(spec)),)  # parsed, which checks the ranges


def workers_option(help: str = "Number of processes.") -> Callable[[Command], Command]:
    """Return a decorator that adds the option --workers.

    Its value is None if it is not given; the command then calls `get_default_num_workers`.
    """
    return click.option(
        "--workers",
        type=click.IntRange(1, MAX_WORKERS),
        metavar="N",
        help=f"{help}  [default: the number of cores, at most 8]",
    )


def num_documents_option(default: int, help: str = "Number of documents to encode.") -> Callable[[Command], Command]:
    """Return a decorator that adds the option -n: how many documents a command encodes or reads."""
    return click.option(
        "-n",
        "num_documents",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        metavar="N",
        help=help,
    )


def _unescape(text: str | None, letters: str) -> str | None:
    """Replace `\\n`, `\\r` and `\\t`, if they are in `letters`, and `\\\\` by the characters that they mean.

    Most shells pass these escapes unchanged.
    """
    if text is None:
        return None
    characters = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(rf"\\([{letters}\\])", lambda match: characters[match[1]], text)
