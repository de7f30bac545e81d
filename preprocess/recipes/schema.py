"""The recipe: every setting that determines the bytes of a build, with types and checks.

Only the recipe and the input files determine the bytes of a build. The machine, the mirror, the
time and the number of workers do not. The manifest stores the recipe (`Recipe.resolved`), and the
`build_id` is a hash of the manifest; settings that have no effect on a build are not stored.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from preprocess.chats.templates import TEMPLATES
from preprocess.errors import MisuseError
from preprocess.recipes.filter_settings import EDITING_FILTERS, expand_filters, leave_out_folders
from preprocess.recipes.row_filter import parse_condition
from preprocess.recipes.setting_types import format_type, format_value, matches_type
from preprocess.recipes.templates import SURROGATE, parse_name_pattern, parse_template
from preprocess.recipes.text_encodings import AUTO, find_codec
from preprocess.shards.files import PLAIN_NAME, JsonObject

DUPLICATES_SPLIT_WARNING = (
    "without deduplication, equal documents of different groups may appear on both sides of the split"
)

# In the order in which they are applied. An HTML entity can encode any character, so entities are
# decoded before characters are removed or normalised. White space is trimmed last.
CLEANING_RULES = (
    "mojibake",
    "html_entities",
    "line_ends",
    "control_characters",
    "byte_order_mark",
    "nfc",
    "white_space",
    "trim",
)
DEFAULT_RULES = ("line_ends", "control_characters", "byte_order_mark", "nfc")
MIN_PIECES = 300  # 256 bytes, the control pieces, and some room for merged pieces
TABLE_FORMATS = ("jsonl", "csv", "parquet", "arrow")  # formats whose records have columns
PAGE_FORMATS = ("html", "warc")  # formats of web pages, each of which is one document
COLUMN_SETTINGS = (
    "text_column",
    "author_column",
    "city_column",
    "year_column",
    "lang_column",
    "group_column",
    "split_column",
)
CSV_SETTINGS = ("delimiter", "escape", "quotes")
JSON_SETTINGS = ("json_field",)
NEAR_DEDUP_SETTINGS = ("near_dedup_threshold", "near_dedup_words", "near_dedup_bands", "near_dedup_rows")
DEDUP_LINES_SETTINGS = ("dedup_lines_max_documents", "dedup_lines_min_characters")
DECONTAMINATE_SETTINGS = ("decontaminate_policy", "decontaminate_sha256")
# Settings whose defaults are not stored, so that the build_id is that of Folio before it had these settings.
LATER_SETTINGS = (
    *(*CSV_SETTINGS, *JSON_SETTINGS, "encoding", "chat_columns", "chat_template"),
    *("near_dedup", *NEAR_DEDUP_SETTINGS),
    *("decontaminate", *DECONTAMINATE_SETTINGS),
    *("dedup_lines", *DEDUP_LINES_SETTINGS),
    "filters",
)
# Settings that apply to some formats only.
FORMAT_SETTINGS = (
    *COLUMN_SETTINGS,
    *("template", "where", "chat_columns", "document", "separator", "passage_characters"),
    *CSV_SETTINGS,
    *JSON_SETTINGS,
)
CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("auto", "text", *TABLE_FORMATS, *PAGE_FORMATS, "synthetic"),
    "document": ("file", "line", "paragraph", "passage", "separator"),
    "group_by": ("content", "position", "source"),
    "invalid_utf8": ("error", "replace", "skip"),
    "oversized": ("error", "skip"),
    "split": ("exact", "threshold", "contiguous", "given"),
    "eot": ("auto", "append", "none"),
    "chat_template": (*TEMPLATES,),
    "near_dedup": ("drop", "group"),
    "decontaminate_policy": ("drop", "report"),
    "dedup_lines": ("line", "paragraph"),
}
OPTIONAL_CHOICES = ("chat_template", "near_dedup", "dedup_lines")  # may be None

DOCUMENTATION_SETTINGS = ("description", "licence", "size", "hub")  # they decide no byte of a build of given files
MAX_TEXT_CHARACTERS = 10_000
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_FILE_BYTES = (1 << 63) - 1
# (min, max) of the numeric settings, both inclusive.
RANGES: dict[str, tuple[float, float]] = {
    "passage_characters": (1, 1 << 40),
    "num_pieces": (MIN_PIECES, 64_000),
    "sample_bytes": (1, 1 << 40),
    "num_pairs": (1, 1_000_000),  # the generator remembers every sentence, about 500 bytes for each pair
    "shard_tokens": (1, 1 << 40),
    "max_document_bytes": (1, 1 << 30),
    "max_documents": (1, 1 << 62),
    "min_characters": (1, 1 << 40),
    "max_characters": (1, 1 << 40),
    "seed": (0, (1 << 64) - 1),
    "year": (0, 9999),
    "dedup_lines_max_documents": (1, 1 << 31),
    "dedup_lines_min_characters": (1, 1 << 40),
    "near_dedup_threshold": (0.1, 1),
    "near_dedup_words": (1, 100),
    "near_dedup_bands": (1, 100),
    "near_dedup_rows": (1, 100),
}


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A file of a built-in corpus: its name, checksum and size, and the URL to download it from."""

    name: str
    sha256: str
    bytes: int
    url: str = ""  # empty if the file cannot be downloaded from a public URL; it must then be in a mirror

    def __post_init__(self) -> None:
        if not PLAIN_NAME.fullmatch(self.name):
            raise MisuseError(
                f"a file name must consist of letters, digits and . _ - only, got {format_value(self.name)}"
            )
        if not SHA256.fullmatch(self.sha256):
            raise MisuseError(f"the sha256 of {self.name} must be 64 digits 0-9 a-f, got {format_value(self.sha256)}")
        if not 0 <= self.bytes <= MAX_FILE_BYTES:
            raise MisuseError(
                f"the bytes of {self.name} must be from 0 to {MAX_FILE_BYTES:,}, got {format_value(self.bytes)}"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a build: what to read, how to process it, and how to write it.

    `description`, `licence`, `size`, `hub`, `inputs` and the files' `url` are not stored in the
    manifest, so changing them does not change the `build_id`. The manifest's `sources` identify the
    files that were read.
    """

    corpus: str
    description: str = ""  # of the corpus, shown by `preprocess corpora`
    licence: str = ""  # of the corpus, also in the model card of an export
    format: str = "auto"  # auto: from the suffix of each file's name; synthetic: generated from `seed`
    tokenizer: str = "gpt2"  # gpt2, another tiktoken encoding, sentencepiece, char, byte, or the path of a tokenizer
    tokenizer_sha256: str | None = None  # of the tokenizer's files if `tokenizer` is a path; set when they are read
    files: tuple[CorpusFile, ...] = ()  # downloaded, and verified by their checksums
    inputs: tuple[str, ...] = ()  # the user's files, folders and globs
    size: str = ""  # shown by `preprocess corpora` if `files` is empty
    hub: str = ""  # the URL that is read if there are no `inputs`, for built-in corpora of the Hugging Face hub
    num_pairs: int = 10_000  # synthetic only: sentence pairs, or with chat_columns questions
    document: str = "file"  # text only: the unit of text that becomes one document
    separator: str = "<|endoftext|>"  # text between two documents, if `document` is "separator"
    passage_characters: int = 2_000  # approximate length of a document, if `document` is "passage"
    text_column: str = "text"  # the *_column settings, `template` and `where` apply to tables only
    template: str | None = None  # joins several columns into the text; used instead of text_column
    where: str | None = None  # condition that selects rows
    # Of tables with chats: "messages", "prompt,completion", "instruction,input,output" or other names in their place.
    # They are found if the table has no text_column and no template.
    chat_columns: str | None = None
    # The control tokens of turns; nanochat if there are chat_columns. Without them, the tokens are only reserved.
    chat_template: str | None = None
    delimiter: str | None = None  # CSV only: the character between values; by default it is found in the header
    escape: str | None = None  # CSV only: the character after which a quote or a delimiter is part of the text
    json_field: str | None = None  # JSON only: the field with the array of records; by default it is found
    quotes: bool = True  # CSV only: quotes enclose values; otherwise they are ordinary characters
    author: str | None = None  # of all documents; author_column and name_pattern take precedence
    city: str | None = None
    year: int | None = None
    lang: str | None = None
    author_column: str | None = None
    city_column: str | None = None
    year_column: str | None = None
    lang_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    name_pattern: str | None = None  # regular expression with named groups, matched against file names
    group_by: str = "content"  # what defines a group; the split puts all documents of a group on one side
    encoding: str = "auto"  # of text, JSON and CSV; auto: UTF-8, or UTF-16 or UTF-32 if the first bytes show it
    invalid_utf8: str = "error"
    max_document_bytes: int = 64_000_000  # a longer document is cut into several at white space
    oversized: str = "error"  # what to do with a longer document that cannot be cut
    max_documents: int | None = None  # keep at most this many, in whole groups chosen at random
    clean: tuple[str, ...] = DEFAULT_RULES
    min_characters: int | None = None
    max_characters: int | None = None
    # Each is NAME or NAME:key=value,key=value, and is stored with all settings. They are applied in this order.
    filters: tuple[str, ...] = ()
    dedup: bool = True
    # Documents that are nearly equal to an earlier one: drop them, or keep each such group on one side of the split.
    near_dedup: str | None = None
    near_dedup_threshold: float = 0.8  # the smallest Jaccard similarity of nearly equal documents
    near_dedup_words: int = 5  # in a sequence
    # Documents that have one of these bands in common are compared: all but 1 in 2,800 pairs with a similarity of 0.8.
    near_dedup_bands: int = 20
    near_dedup_rows: int = 5  # MinHash values in a band
    dedup_lines: str | None = None  # line or paragraph: remove those that also occur in other documents
    # None: remove those that an earlier document has. N: remove those that are in more than N documents from all.
    dedup_lines_max_documents: int | None = None
    dedup_lines_min_characters: int = 30  # shorter lines and paragraphs are kept
    decontaminate: tuple[str, ...] = ()  # files of evaluation items, which documents must not contain
    decontaminate_policy: str = "drop"  # what is done with documents that do; report: they are only counted
    decontaminate_sha256: tuple[str, ...] = ()  # of the files; set when they are read
    split: str = "exact"
    val_fraction: float = 0.1  # 0: all documents are for training
    authors: bool = True  # begin each document with control tokens for author, city and year
    bos: bool = False  # begin each document with the tokenizer's begin-of-text token, if it has one
    eot: str = "auto"  # end each document with the end-of-text token; auto: if the tokenizer has one
    num_pieces: int = 3_000  # sentencepiece only
    sample_bytes: int = 50_000_000  # sentencepiece only: approximate size of the training text for the tokenizer
    shard_tokens: int = 100_000_000  # a shard ends after the document that reaches this number of tokens
    seed: int = 0  # of all random choices

    def __post_init__(self) -> None:
        if not PLAIN_NAME.fullmatch(self.corpus):
            raise MisuseError(
                f"the name of a corpus must consist of letters, digits and . _ - only, got {format_value(self.corpus)}"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices and not (name in OPTIONAL_CHOICES and getattr(self, name) is None):
                found = format_value(getattr(self, name))
                raise MisuseError(f"{name} must be one of {', '.join(choices)}, got {found}")
        for name, (min_value, max_value) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not min_value <= value <= max_value:
                raise MisuseError(f"{name} must be from {min_value:,} to {max_value:,}, got {format_value(value)}")
        if not 0 <= self.val_fraction < 1:  # also rejects NaN
            raise MisuseError(
                "val_fraction must be at least 0 (no validation documents) and less than 1, such as 0.1, got "
                f"{format_value(self.val_fraction)}"
            )
        self._check_lengths()
        self._check_split()
        if unknown := [rule for rule in self.clean if rule not in CLEANING_RULES]:
            raise MisuseError(f"clean must be a list of {', '.join(CLEANING_RULES)}, got {format_value(unknown[0])}")
        self._check_csv_settings()
        self._check_chat_settings()
        self._set_filters()
        if self.encoding != AUTO:
            find_codec(self.encoding)
        if self.json_field == "":
            raise MisuseError("json_field must not be empty; set the name of the field with the records, such as data")
        if not self.separator:
            raise MisuseError("separator must not be empty; set the text between documents, such as '<|endoftext|>'")
        if self.where is not None:
            parse_condition(self.where)
        if self.template is not None:
            parse_template(self.template)
        if self.name_pattern is not None:
            parse_name_pattern(self.name_pattern)
        self._check_texts()

    def _check_lengths(self) -> None:
        if self.min_characters is None or self.max_characters is None:
            return
        if self.min_characters > self.max_characters:
            raise MisuseError(
                f"min_characters must be at most max_characters, got {self.min_characters:,} and "
                f"{self.max_characters:,}; change one of them"
            )

    def _check_texts(self) -> None:
        for path in self.decontaminate:
            if SURROGATE.search(path):  # the manifest contains the name of the file
                raise MisuseError(f"decontaminate must be UTF-8 text, got {format_value(path)}; rename the file")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in DOCUMENTATION_SETTINGS or not isinstance(value, str):
                continue
            if len(value) > MAX_TEXT_CHARACTERS:
                raise MisuseError(
                    f"{field.name} must have at most {MAX_TEXT_CHARACTERS:,} characters, got {len(value):,}"
                )
            if SURROGATE.search(value):
                raise MisuseError(f"{field.name} must be UTF-8 text, got {format_value(value)}; type it again")

    def _set_filters(self) -> None:
        """Write the filters in their canonical spelling, and check them."""
        for spec in self.filters:
            if SURROGATE.search(spec):
                raise MisuseError(f"filters must be UTF-8 text, got {format_value(spec)}; type it again")
        object.__setattr__(self, "filters", expand_filters(None, self.filters))
        names = [spec.partition(":")[0] for spec in self.filters]
        editing = [name for name in names if name in EDITING_FILTERS]
        if editing and self.chat_columns is not None:
            raise MisuseError(
                f"the filter {editing[0]} removes lines from texts, but these documents are chats, whose messages it "
                "would join; leave it out"
            )

    def _check_csv_settings(self) -> None:
        for name in ("delimiter", "escape"):
            value = getattr(self, name)
            if value is not None and (len(value) != 1 or not value.isascii() or value in '"\r\n\0'):
                raise MisuseError(
                    f"{name} must be one ASCII character other than a quote and a line end, got {format_value(value)}"
                )
        if self.delimiter is not None and self.delimiter == self.escape:
            raise MisuseError(f"delimiter and escape must be different characters, both are {self.escape!r}")

    def _check_chat_settings(self) -> None:
        if self.chat_columns is None:
            return
        names = self.list_chat_columns()
        if not 1 <= len(names) <= 3 or not all(names) or len(set(names)) < len(names):
            raise MisuseError(
                "chat_columns must be one to three names separated by commas, such as messages, prompt,completion or "
                f"instruction,input,output, got {format_value(self.chat_columns)}"
            )
        if self.dedup_lines is not None:
            raise MisuseError(
                "dedup_lines removes lines from texts, but these documents are chats, whose messages it would join; "
                "leave it out"
            )
        if self.template is not None:
            raise MisuseError("template and chat_columns both define the text; leave one of them out")

    @property
    def has_masks(self) -> bool:
        """Whether the documents have loss masks."""
        return self.chat_columns is not None

    def list_chat_columns(self) -> tuple[str, ...]:
        """Return the names of the columns that a chat is made from; none if `chat_columns` is None."""
        return tuple(name.strip() for name in self.chat_columns.split(",")) if self.chat_columns is not None else ()

    def _check_split(self) -> None:
        if self.format == "synthetic" and self.group_by != "content":
            raise MisuseError(
                f"group_by is {self.group_by!r}, but the groups of a generated corpus are its pairs; leave it out"
            )
        if self.split == "contiguous" and self.format not in ("auto", "text"):
            raise MisuseError(
                f"split 'contiguous' cuts text files, but the format of the corpus is {self.format}; "
                "set split to 'exact'"
            )
        if self.split == "contiguous" and self.document not in ("file", "passage"):
            raise MisuseError(f"split 'contiguous' requires document to be 'file' or 'passage', got {self.document!r}")
        names_split = self.split_column is not None or "(?P<split>" in (self.name_pattern or "")
        if self.split == "given" and not names_split:
            raise MisuseError(
                "split is 'given', but no column or file name gives it; set split_column, or add a group (?P<split>…) "
                "to name_pattern"
            )
        if self.group_column is not None and self.group_by != "content":
            raise MisuseError(
                f"group_by {self.group_by!r} and group_column {self.group_column!r} both define the groups; "
                "leave one of them out"
            )
        if self.split_column is not None and self.split != "given":
            raise MisuseError(f"split_column requires split 'given', but split is {self.split!r}; pass --split given")
        if self.split == "given" and self.max_documents is None and self.group_by != "content":
            raise MisuseError(
                f"group_by is {self.group_by!r}, but a given split does not use groups; leave one of them out"
            )
        if self.near_dedup == "group" and (self.split in ("contiguous", "given") or not self.val_fraction):
            raise MisuseError(
                "near_dedup 'group' keeps documents on one side of a random split, but this build has none; "
                "set near_dedup to 'drop'"
            )

    def resolved(self) -> JsonObject:
        """Return the settings that determine the bytes of a build, as `manifest.json` stores them.

        Defaults are included, except those of LATER_SETTINGS. Settings that have no effect on this build
        are left out.
        """
        fields = dataclasses.asdict(self)
        for name in (*DOCUMENTATION_SETTINGS, "inputs"):
            del fields[name]
        fields["files"] = [{"name": f.name, "sha256": f.sha256, "bytes": f.bytes} for f in self.files]
        fields["clean"] = [rule for rule in CLEANING_RULES if rule in self.clean]
        fields["filters"] = tuple(map(leave_out_folders, self.filters))
        fields["encoding"] = self.encoding if self.encoding == AUTO else find_codec(self.encoding) or "utf-8"
        fields["eot"] = "append" if self.eot == "auto" else self.eot  # a plan has replaced it if there is no such token
        fields["tokenizer"] = re.split(r"[/\\]", self.tokenizer)[-1]  # its folder differs by machine
        fields["decontaminate"] = tuple(re.split(r"[/\\]", path)[-1] for path in self.decontaminate)
        later = {field.name: field.default for field in dataclasses.fields(self) if field.name in LATER_SETTINGS}
        for name in {*_list_unused_settings(self), *(name for name in later if fields[name] == later[name])}:
            del fields[name]
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
        }  # as in JSON


def _list_unused_settings(recipe: Recipe) -> list[str]:
    """Return the settings that cannot change a byte of this recipe's build.

    Two recipes that differ only in these settings give the same build.
    """
    is_synthetic, is_text = recipe.format == "synthetic", recipe.format == "text"
    is_table, is_page = recipe.format in TABLE_FORMATS, recipe.format in PAGE_FORMATS
    is_split_known = recipe.split in ("contiguous", "given")
    trains_tokenizer = recipe.tokenizer == "sentencepiece"
    has_no_columns = is_synthetic or is_text or is_page
    is_unused = {
        **dict.fromkeys((*COLUMN_SETTINGS, "template", "where"), has_no_columns),
        "chat_columns": is_text or is_page,
        "text_column": has_no_columns or recipe.template is not None or recipe.chat_columns is not None,
        **dict.fromkeys(CSV_SETTINGS, recipe.format not in ("auto", "csv")),
        **dict.fromkeys(JSON_SETTINGS, recipe.format not in ("auto", "jsonl")),
        "tokenizer_sha256": recipe.tokenizer_sha256 is None,
        "num_pairs": not is_synthetic,
        "document": is_synthetic or is_table or is_page,
        "passage_characters": recipe.document != "passage",
        "separator": recipe.document != "separator",
        "name_pattern": is_synthetic,
        "group_by": is_synthetic or (is_split_known and recipe.max_documents is None),
        "encoding": is_synthetic or recipe.format in ("parquet", "arrow"),
        "invalid_utf8": is_synthetic,
        "val_fraction": recipe.split == "given",
        "num_pieces": not trains_tokenizer,
        "sample_bytes": not trains_tokenizer,
        **dict.fromkeys(NEAR_DEDUP_SETTINGS, recipe.near_dedup is None),
        **dict.fromkeys(DEDUP_LINES_SETTINGS, recipe.dedup_lines is None),
        **dict.fromkeys(DECONTAMINATE_SETTINGS, not recipe.decontaminate),
        "bos": recipe.tokenizer in ("gpt2", "char", "byte"),
        "seed": is_split_known and not is_synthetic and not trains_tokenizer and recipe.max_documents is None,
    }
    return [name for name, unused in is_unused.items() if unused]


def reject_settings_of_other_formats(recipe: Recipe) -> None:
    """Raise MisuseError if a setting is not the default but has no effect on `recipe.format`."""
    unused = _list_unused_settings(recipe)
    for field in dataclasses.fields(Recipe):
        is_set = getattr(recipe, field.name) != field.default
        if field.name in unused and field.name in FORMAT_SETTINGS and is_set:
            flag = field.name.replace("_", "-")
            raise MisuseError(
                f"{field.name} has no effect on {recipe.format} files; leave --{flag} out, or name other files"
            )


def reject_unused_settings(recipe: Recipe, given: Iterable[str], corpus: str) -> None:
    """Raise MisuseError for a setting in `given` that has no effect on the build of `corpus`."""
    if unused := sorted(set(_list_unused_settings(recipe)) & set(given)):
        flag = unused[0].replace("_", "-")
        raise MisuseError(
            f"{unused[0]} has no effect on {corpus} with the {recipe.tokenizer} tokenizer; leave --{flag} out"
        )


def parse_recipe(fields: Mapping[str, Any], *, origin: str) -> Recipe:
    """Return the Recipe with the settings in `fields`, the content of a TOML file.

    Raises MisuseError for a setting that is unknown, missing, or has a wrong type or value; the message
    begins with `origin`, the name of the file.
    """
    entries = fields.get("files", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MisuseError(f"{origin}: files must be a list of tables, got {format_value(entries)}; write [[files]]")
    files = tuple(_parse(CorpusFile, entry, f"{origin}: files[{i}]") for i, entry in enumerate(entries))
    recipe: Recipe = _parse(Recipe, {**fields, "files": files}, origin)
    return recipe


def check_settings(fields: Mapping[str, Any], *, prefix: str = "", cls: Any = Recipe) -> None:
    """Raise MisuseError for a setting that `cls` does not have, or whose value has a wrong type.

    The message begins with `prefix`.
    """
    hints = typing.get_type_hints(cls)
    for key, value in fields.items():
        if key not in hints:
            raise MisuseError(f"{prefix}no setting is called {format_value(key)}; {suggest(key[:100], hints)}")
        if not matches_type(value, hints[key]):
            raise MisuseError(f"{prefix}{key} must be of type {format_type(hints[key])}, got {format_value(value)}")


def _parse(cls: Any, fields: Mapping[str, Any], origin: str) -> Any:
    check_settings(fields, prefix=f"{origin}: ", cls=cls)
    for field in dataclasses.fields(cls):
        if field.name not in fields and field.default is dataclasses.MISSING:
            hint = typing.get_type_hints(cls)[field.name]
            raise MisuseError(f"{origin}: {field.name} is missing; add it with a value of type {format_type(hint)}")
    try:
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
    except MisuseError as e:  # of a value, such as a filter, which does not know where it was written
        raise MisuseError(f"{origin}: {e}") from e


def suggest(word: str, known: Iterable[str]) -> str:
    """Return advice for an unknown `word`: the most similar `known` word, or else all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(known))}"


def is_grouped_by_content(recipe: Recipe) -> bool:
    """Return whether the split is random and the groups of documents are given by their content."""
    return (
        recipe.split in ("exact", "threshold")
        and recipe.format != "synthetic"  # its pairs are groups
        and recipe.group_by == "content"
        and recipe.group_column is None
        and "(?P<group>" not in (recipe.name_pattern or "")
    )


def can_split_duplicates(recipe: Recipe) -> bool:
    """Return whether equal documents may appear on both sides of the split."""
    return not recipe.dedup and not is_grouped_by_content(recipe) and has_validation(recipe)


def has_validation(recipe: Recipe) -> bool:
    """Return whether the split has a validation side. It has none if `val_fraction` is 0."""
    return recipe.split == "given" or recipe.val_fraction > 0
