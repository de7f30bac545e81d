"""Recipe: everything that decides a build's bytes, typed, from TOML.

Nothing else may decide them: not the machine, the mirror, the clock or the number of workers (architecture law 4).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from preprocess.errors import MisuseError
from preprocess.shards.files import PLAIN_NAME

STRADDLING = "without deduplication equal documents of different groups may fall on both sides of the split"

# In the order they are applied: entities may spell any character, and only what is left at the end is trimmed.
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
MIN_PIECES = 300  # 256 bytes, the control pieces, and a little
TABLES = ("jsonl", "csv", "parquet")  # formats whose records have columns
COLUMN_SETTINGS = (
    "text_column",
    "author_column",
    "city_column",
    "year_column",
    "lang_column",
    "group_column",
    "split_column",
)
BY_FORMAT = (
    *COLUMN_SETTINGS,
    "template",
    "where",
    "document",
    "separator",
    "passage_characters",
)  # some formats have no use for these
CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("auto", "text", *TABLES, "synthetic"),
    "document": ("file", "line", "paragraph", "passage", "separator"),
    "group_by": ("content", "position", "source"),
    "invalid_utf8": ("error", "replace", "skip"),
    "oversized": ("error", "skip"),
    "split": ("exact", "threshold", "contiguous", "given"),
    "eot": ("append", "none"),
}
# (least, most) of the numeric settings, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    "passage_characters": (1, 1 << 40),
    "num_pieces": (MIN_PIECES, 64_000),
    "sample_bytes": (1, 1 << 40),
    "num_pairs": (1, 1_000_000),  # of far more that are possible: every sentence made is remembered
    "shard_tokens": (1, 1 << 40),
    "max_document_bytes": (1, 1 << 30),
    "max_documents": (1, 1 << 62),
    "min_characters": (1, 1 << 40),
    "max_characters": (1, 1 << 40),
    "seed": (0, (1 << 64) - 1),
    "year": (0, 9999),
}


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """One file of a corpus: its name under the corpus, what vouches for it, and where it can be had ("": only from a mirror)."""

    name: str
    sha256: str
    bytes: int
    url: str = ""

    def __post_init__(self) -> None:
        if not PLAIN_NAME.fullmatch(self.name):
            raise MisuseError(f"files: {self.name!r} is no plain file name; wanted letters, digits and . _ - alone")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to read, how to treat it, and how to write it.

    `description`, `licence`, `size`, `hub`, `inputs` and the files' `url` are for people and for finding: they are not in the manifest, so
    correcting them changes no `build_id`. What was read is: the manifest's `sources` name it.
    """

    corpus: str
    description: str = ""
    licence: str = ""
    format: str = "auto"  # auto: by the end of each file's name; synthetic: generated from `seed`
    tokenizer: str = "gpt2"  # gpt2, sentencepiece, char, byte, another encoding of tiktoken's, or a tokenizer's file
    tokenizer_sha256: str | None = None  # of a tokenizer's file, found when it is read
    files: tuple[CorpusFile, ...] = ()  # fetched and vouched for
    inputs: tuple[str, ...] = ()  # files, folders and globs of the user's own
    size: str = ""  # where no file tells it
    hub: str = ""  # whose Parquet files `inputs` are to name, where the corpus is too large to be fetched file by file
    num_pairs: int = 10_000  # synthetic only
    document: str = "file"  # text only: what one document is
    separator: str = "<|endoftext|>"
    passage_characters: int = 2_000
    text_column: str = "text"  # tables only, as all columns, `template` and `where`
    template: str | None = None  # joins columns to a text in place of text_column
    where: str | None = None  # which rows to take
    author: str | None = None  # of every document, where neither a column nor the file's name says
    city: str | None = None
    year: int | None = None
    lang: str | None = None
    author_column: str | None = None
    city_column: str | None = None
    year_column: str | None = None
    lang_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    name_pattern: str | None = None  # regular expression over a file's name, with named groups
    group_by: str = "content"  # what may not straddle the split; position: the same place in each of several files
    invalid_utf8: str = "error"
    max_document_bytes: int = 64_000_000  # a longer document is cut at white space into several
    oversized: str = "error"  # what happens to one without white space to cut at
    max_documents: int | None = None
    clean: tuple[str, ...] = DEFAULT_RULES
    min_characters: int | None = None
    max_characters: int | None = None
    dedup: bool = True
    split: str = "exact"
    val_fraction: float = 0.1
    authors: bool = True  # control tokens of author, city and year in front of each document
    bos: bool = False  # the tokenizer's begin-of-text token in front of each document, where it has one
    eot: str = "append"
    num_pieces: int = 3_000  # sentencepiece only
    sample_bytes: int = 50_000_000  # sentencepiece only: about so much of the training documents is learned from
    shard_tokens: int = 100_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not PLAIN_NAME.fullmatch(self.corpus):
            raise MisuseError(f"a corpus cannot be called {self.corpus!r}; wanted letters, digits and . _ - alone")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise MisuseError(f"{name} is {getattr(self, name)!r}, wanted one of {', '.join(allowed)}")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise MisuseError(f"{name} is {value:,}, wanted {least:,} to {most:,}")
        if not (math.isfinite(self.val_fraction) and 0 < self.val_fraction < 1):
            raise MisuseError(f"val_fraction is {self.val_fraction}, wanted a number between 0 and 1, such as 0.1")
        self._check_split()
        if unknown := [rule for rule in self.clean if rule not in CLEANING_RULES]:
            raise MisuseError(f"no cleaning rule is called {unknown[0]!r}, wanted one of {', '.join(CLEANING_RULES)}")
        if not self.separator:
            raise MisuseError(
                "separator is empty, wanted the text that stands between documents, such as '<|endoftext|>'"
            )
        _check_expressions(self)

    def _check_split(self) -> None:
        if self.format == "synthetic" and self.group_by != "content":
            raise MisuseError(
                f"group_by is {self.group_by!r}, the pairs of a generated corpus are its groups; leave it out"
            )
        if self.split == "contiguous" and self.format not in ("auto", "text"):
            raise MisuseError(
                f"split is 'contiguous', which cuts text files, and the corpus is {self.format}; wanted 'exact'"
            )
        if self.split == "contiguous" and self.document not in ("file", "passage"):
            raise MisuseError(
                f"document is {self.document!r}, a contiguous split makes a file's two sides 'file' or 'passage'"
            )
        names_split = self.split_column is not None or "(?P<split>" in (self.name_pattern or "")
        if self.split == "given" and not names_split:
            raise MisuseError(
                "split is 'given' and nothing gives it; name a split_column, or a group (?P<split>…) in name_pattern"
            )
        if self.group_column is not None and self.group_by != "content":
            raise MisuseError(
                f"group_by is {self.group_by!r} and group_column {self.group_column!r}: both say what a group is; leave one out"
            )
        if self.split_column is not None and self.split != "given":
            raise MisuseError(f"split_column goes with split 'given', and split is {self.split!r}; pass --split given")
        if self.split == "given" and self.max_documents is None and self.group_by != "content":
            raise MisuseError(
                f"group_by is {self.group_by!r}, which a given split does not ask for; leave one of them out"
            )

    def resolved(self) -> dict[str, Any]:
        """The recipe as `manifest.json` holds it: settings that decide bytes, whether given or default."""
        fields = dataclasses.asdict(self)
        for name in ("description", "licence", "inputs", "hub", "size"):
            del fields[name]
        fields["files"] = [{"name": f.name, "sha256": f.sha256, "bytes": f.bytes} for f in self.files]
        fields["clean"] = [rule for rule in CLEANING_RULES if rule in self.clean]
        fields["tokenizer"] = re.split(r"[/\\]", self.tokenizer)[-1]  # the manifest names no path of this machine
        for name in _without_effect(self):
            del fields[name]
        return fields


def _check_expressions(recipe: Recipe) -> None:
    """Refuse a condition, template or pattern that is none before anything is read."""
    from preprocess.recipes.row_filter import parse_condition
    from preprocess.recipes.templates import parse_name_pattern, parse_template

    if recipe.where is not None:
        parse_condition(recipe.where)
    if recipe.template is not None:
        parse_template(recipe.template)
    if recipe.name_pattern is not None:
        parse_name_pattern(recipe.name_pattern)


def _without_effect(recipe: Recipe) -> list[str]:
    """Settings that cannot touch a byte of this recipe's build: two builds that differ only there are one build."""
    is_synthetic, is_table, is_text = recipe.format == "synthetic", recipe.format in TABLES, recipe.format == "text"
    is_given, is_trained = recipe.split in ("contiguous", "given"), recipe.tokenizer == "sentencepiece"
    by_column = dict.fromkeys((*COLUMN_SETTINGS, "template", "where"), is_synthetic or is_text)
    idle = {
        **by_column,
        "text_column": by_column["text_column"] or recipe.template is not None,
        "tokenizer_sha256": recipe.tokenizer_sha256 is None,
        "num_pairs": not is_synthetic,
        "document": is_synthetic or is_table,
        "passage_characters": recipe.document != "passage",
        "separator": recipe.document != "separator",
        "name_pattern": is_synthetic,
        "group_by": is_synthetic or (is_given and recipe.max_documents is None),
        "invalid_utf8": is_synthetic,
        "val_fraction": recipe.split == "given",
        "num_pieces": not is_trained,
        "sample_bytes": not is_trained,
        "bos": recipe.tokenizer in ("gpt2", "char", "byte"),
        "seed": is_given and not is_synthetic and not is_trained and recipe.max_documents is None,
    }
    return [name for name, is_idle in idle.items() if is_idle]


def reject_without_effect(recipe: Recipe) -> None:
    """Raise MisuseError for a setting that is not as it is by default and, now that the format is known, cannot change anything."""
    for field in dataclasses.fields(Recipe):
        if (
            field.name in _without_effect(recipe)
            and field.name in BY_FORMAT
            and getattr(recipe, field.name) != field.default
        ):
            flag = field.name.replace("_", "-")
            raise MisuseError(
                f"{field.name} has no effect on {recipe.format} files; leave --{flag} out, or name other files"
            )


def reject_idle(recipe: Recipe, given: Iterable[str], what: str) -> None:
    """Raise MisuseError for a setting that was `given` and that cannot change anything."""
    if idle := sorted(set(_without_effect(recipe)) & set(given)):
        flag = idle[0].replace("_", "-")
        raise MisuseError(
            f"{idle[0]} has no effect on {what} with the {recipe.tokenizer} tokenizer; leave --{flag} out"
        )


def parse_recipe(fields: dict[str, Any], *, where: str) -> Recipe:
    """A Recipe from parsed TOML; an unknown key, a missing one or a wrong type is a MisuseError that names it."""
    files = tuple(_parse(CorpusFile, entry, f"{where}: files[{i}]") for i, entry in enumerate(fields.get("files", [])))
    recipe: Recipe = _parse(Recipe, {**fields, "files": files}, where)
    return recipe


def check_settings(fields: dict[str, Any], *, where: str = "", cls: Any = Recipe) -> None:
    """Raise MisuseError for a setting that `cls` has not, or of another type. `where`: what the message begins with."""
    hints = typing.get_type_hints(cls)
    for key, value in fields.items():
        if key not in hints:
            raise MisuseError(f"{where}no setting is called {key!r}; {nearest(key, hints)}")
        if not _fits(value, hints[key]):
            raise MisuseError(f"{where}{key} is {value!r}, wanted {_format(hints[key])}")


def _parse(cls: Any, fields: dict[str, Any], where: str) -> Any:
    check_settings(fields, where=f"{where}: ", cls=cls)
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in fields and f.default is dataclasses.MISSING]
    if missing:
        raise MisuseError(f"{where}: {missing[0]} is missing, wanted {_format(typing.get_type_hints(cls)[missing[0]])}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return isinstance(value, list | tuple) and all(_fits(v, item) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _format(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """What to write instead: the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"wanted one of {', '.join(sorted(known))}"


def may_straddle(recipe: Recipe) -> bool:
    """Whether equal documents may fall on both sides of the split."""
    return (
        not recipe.dedup
        and recipe.split in ("exact", "threshold")
        and (recipe.group_by != "content" or recipe.group_column is not None)
    )
