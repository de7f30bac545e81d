"""The settings of every filter, and how a filter is written in a recipe: `NAME` or `NAME:key=value,key=value`.

Each filter has a dataclass here, whose fields are its settings with their defaults. The filter itself
is in `preprocess/filters/`; this module is loaded to parse a command line, so it imports no library.

A recipe stores filters in their canonical spelling (`format_filter`): with all settings, sorted by
name. A later version of Folio can therefore change a default without changing the result of an old
recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from preprocess.errors import MisuseError, shorten
from preprocess.recipes.language_codes import LANGUAGE_CODES, UNDETERMINED

MAX_SPEC_CHARACTERS = 10_000
MAX_FILTERS = 1_000  # reading one takes 0.5 ms, and a recipe has room for 200,000
MAX_COUNT = 1 << 40
MAX_BITS = 1000
NONE = "none"  # the spelling of None, which turns a rule off
LIST_SEPARATOR = "|"  # between the values of a setting that is a tuple
# A comma or a backslash in a value is written with a backslash before it.
COMMA = re.compile(r"(?<!\\)(?:\\\\)*(,)")
FILE = "file"  # metadata key of a setting that is the path of a file, or of several
RUN = "run"  # metadata key, besides FILE, of a setting that is the path of a run
RANGE = "range"  # metadata key: (min, max) of a number, both inclusive

FilterSettings = Any  # an object of one of the classes in FILTERS


def file(default: Any = "") -> Any:
    """Return a dataclass field for the path of a file, or if `default` is a tuple, for the paths of several files.

    A filter with such a setting also has the setting `sha256: str = ""`, which is set when the files are read.
    """
    return dataclasses.field(default=default, metadata={FILE: True})


def run() -> Any:
    """Return a dataclass field for the path of a run of `folio train`, or of a checkpoint in it.

    It is like `file`, but `sha256` is the hash of what the newest checkpoint computes, and the path becomes that of
    the checkpoint.
    """
    return dataclasses.field(default="", metadata={FILE: True, RUN: True})


def number(default: float | None, min_value: float = 0, max_value: float = 1) -> Any:
    """Return a dataclass field for a number from `min_value` to `max_value`."""
    return dataclasses.field(default=default, metadata={RANGE: (min_value, max_value)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordCount:
    """Settings of `word_count`."""

    min_words: int | None = number(50, 0, MAX_COUNT)
    max_words: int | None = number(100_000, 0, MAX_COUNT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """Settings of `gopher_quality`: Rae et al. 2021, arXiv 2112.11446, appendix A.1.1."""

    min_words: int | None = number(50, 0, MAX_COUNT)  # without symbols
    max_words: int | None = number(100_000, 0, MAX_COUNT)
    min_mean_word_length: float | None = number(3.0, 0, MAX_COUNT)  # characters, without symbols
    max_mean_word_length: float | None = number(10.0, 0, MAX_COUNT)
    max_symbol_ratio: float | None = number(0.1, 0, MAX_COUNT)  # of hash signs, and of ellipses, to words
    max_bullet_lines: float | None = number(0.9)
    max_ellipsis_lines: float | None = number(0.3)
    min_alphabetic_words: float | None = number(0.8)
    min_stop_words: int | None = number(2, 0, MAX_COUNT)
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherRepetition:
    """Settings of `gopher_repetition`: Rae et al. 2021, arXiv 2112.11446, table A1."""

    max_duplicate_lines: float | None = number(0.3)
    max_duplicate_paragraphs: float | None = number(0.3)
    max_duplicate_line_characters: float | None = number(0.2)
    max_duplicate_paragraph_characters: float | None = number(0.2)
    max_top_2_gram: float | None = number(0.2)
    max_top_3_gram: float | None = number(0.18)
    max_top_4_gram: float | None = number(0.16)
    max_duplicate_5_grams: float | None = number(0.15)
    max_duplicate_6_grams: float | None = number(0.14)
    max_duplicate_7_grams: float | None = number(0.13)
    max_duplicate_8_grams: float | None = number(0.12)
    max_duplicate_9_grams: float | None = number(0.11)
    max_duplicate_10_grams: float | None = number(0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class C4:
    """Settings of `c4`: Raffel et al. 2020, JMLR 21 (140), section 2.2, and the code of the dataset."""

    terminal_punctuation: bool = True  # remove lines that do not end with . ? ! or a quotation mark
    min_line_words: int | None = number(3, 0, MAX_COUNT)
    max_word_characters: int | None = number(1000, 0, MAX_COUNT)
    javascript: bool = True  # remove lines with this word
    policy: bool = True  # remove lines with phrases such as "privacy policy"
    citations: bool = True  # remove citations such as [1]
    lorem_ipsum: bool = True  # drop documents with these words
    curly_bracket: bool = True  # drop documents with {
    min_sentences: int | None = number(5, 0, MAX_COUNT)  # in the lines that are left


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinewebQuality:
    """Settings of `fineweb_quality`: Penedo et al. 2024, arXiv 2406.17557, section 3.6."""

    min_punctuated_lines: float | None = number(0.12)
    max_short_lines: float | None = number(0.67)
    short_line_characters: int = number(30, 0, MAX_COUNT)
    max_duplicate_line_characters: float | None = number(0.01)
    max_line_feeds_per_word: float | None = number(0.3, 0, MAX_COUNT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadWords:
    """Settings of `bad_words`."""

    file: str = file()  # a word or phrase on each line, UTF-8
    sha256: str = ""  # of the file; set when it is read

    def __post_init__(self) -> None:
        if not self.file:
            raise MisuseError("the filter bad_words needs a list of words; write bad_words:file=PATH")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """Settings of `language`."""

    languages: tuple[str, ...] = ()  # keep only documents in these; empty: keep all, and only identify their language
    min_score: float | None = number(0.5)  # a text whose language is less probable is in the language `und`
    override: bool = False  # also identify the language of documents for which the input gives one

    def __post_init__(self) -> None:
        for code in self.languages:
            if code not in LANGUAGE_CODES and code != UNDETERMINED:
                raise MisuseError(
                    "languages of the filter language must be codes that its model knows, such as en, ru or zh "
                    f"(docs/languages.md lists them), got {shorten(repr(code))}"
                )
        object.__setattr__(self, "languages", tuple(sorted(set(self.languages))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """Settings of `classifier`."""

    model: str = file()  # written by `preprocess filter train`
    min_score: float = number(0.5)
    sha256: str = ""  # of the file; set when it is read

    def __post_init__(self) -> None:
        if not self.model:
            raise MisuseError(
                "the filter classifier needs a model; write classifier:model=FILE, with a file that "
                "`preprocess filter train` has written"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Settings of `perplexity`."""

    run: str = run()  # the out_dir of a run, or a checkpoint in it
    min_bits: float | None = number(None, 0, MAX_BITS)  # per byte of the text
    max_bits: float | None = number(None, 0, MAX_BITS)
    max_bytes: int = number(4096, 1, 1 << 20)  # the beginning of a document that is measured
    sha256: str = ""  # of the model and its tokenizer; set when they are read

    def __post_init__(self) -> None:
        if not self.run:
            raise MisuseError("the filter perplexity needs a run; write perplexity:run=RUN,max_bits=…")


PII_KINDS = ("key", "email", "ip", "iban", "card", "phone")
PII_POLICIES = ("mask", "drop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pii:
    """Settings of `pii`."""

    kinds: tuple[str, ...] = PII_KINDS
    policy: str = "mask"  # mask: replace what is found; drop: drop the documents that contain any

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in PII_KINDS]:
            raise MisuseError(
                f"kinds of the filter pii must be some of {LIST_SEPARATOR.join(PII_KINDS)}, "
                f"got {shorten(repr(unknown[0]))}"
            )
        if not self.kinds:
            raise MisuseError(f"kinds of the filter pii must not be empty; name some of {', '.join(PII_KINDS)}")
        if self.policy not in PII_POLICIES:
            raise MisuseError(
                f"policy of the filter pii must be {' or '.join(PII_POLICIES)}, got {shorten(repr(self.policy))}"
            )
        object.__setattr__(self, "kinds", tuple(kind for kind in PII_KINDS if kind in self.kinds))


# The settings of each filter, by the filter's name.
FILTERS: dict[str, type] = {
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4": C4,
    "fineweb_quality": FinewebQuality,
    "bad_words": BadWords,
    "word_count": WordCount,
    "language": Language,
    "classifier": Classifier,
    "perplexity": Perplexity,
    "pii": Pii,
}
# The filters that remove lines. They are errors with chats, because they would join the messages of several people.
EDITING_FILTERS: tuple[str, ...] = ("c4",)
# The filters of each preset, by the preset's name; the option --quality applies them.
PRESETS: dict[str, tuple[str, ...]] = {
    # In the order of FineWeb's published pipeline, after its filters by URL and by language.
    "fineweb": ("gopher_repetition", "gopher_quality", "c4:terminal_punctuation=false", "fineweb_quality"),
    "gopher": ("gopher_quality", "gopher_repetition"),
    "c4": ("c4",),
}


def expand_filters(quality: str | None, filters: Iterable[str]) -> tuple[str, ...]:
    """Return the filters of the preset `quality`, if any, followed by `filters`, in canonical spelling.

    Raises MisuseError for an unknown preset and for too many filters, and the errors of `parse_filter`.
    """
    if quality is not None and quality not in PRESETS:
        raise MisuseError(f"no quality preset is called {shorten(repr(quality))}; {_suggest(quality, PRESETS)}")
    specs = (*(PRESETS[quality] if quality is not None else ()), *filters)
    if len(specs) > MAX_FILTERS:
        raise MisuseError(f"there are {len(specs):,} filters, expected at most {MAX_FILTERS:,}; leave some out")
    return tuple(format_filter(*parse_filter(spec)) for spec in specs)


def parse_filter(spec: str) -> tuple[str, FilterSettings]:
    """Return the name and the settings of the filter that `spec` describes.

    Raises MisuseError if the name, a key or a value is not known, or if a minimum is above its maximum.
    """
    if len(spec) > MAX_SPEC_CHARACTERS:
        raise MisuseError(f"a filter must have at most {MAX_SPEC_CHARACTERS:,} characters, got {len(spec):,}")
    name, _, rest = spec.partition(":")
    if name not in FILTERS:
        raise MisuseError(f"no filter is called {shorten(repr(name))}; {_suggest(name, FILTERS)}")
    hints = typing.get_type_hints(FILTERS[name])
    fields = {field.name: field for field in dataclasses.fields(FILTERS[name])}
    values: dict[str, Any] = {}
    for part in _split(rest) if rest else ():
        key, sign, text = part.partition("=")
        if key not in hints or not sign:
            raise MisuseError(
                f"the filter {name} has no setting {shorten(repr(key))}; {_suggest(key, hints)}"
                if key not in hints
                else f"the setting {key} of the filter {name} has no value; write {key}=VALUE"
            )
        if key in values:
            raise MisuseError(f"the filter {name} has the setting {key} twice; leave one of them out")
        values[key] = _parse_value(f"{key} of the filter {name}", text, hints[key])
        _check_range(f"{key} of the filter {name}", values[key], fields[key].metadata.get(RANGE))
    settings = FILTERS[name](**values)
    _check_limits(name, settings)
    return name, settings


def format_filter(name: str, settings: FilterSettings) -> str:
    """Return the canonical spelling of a filter: with all settings, sorted by name."""
    texts = {field.name: _format_value(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    pairs = ",".join(f"{key}={text}" for key, text in sorted(texts.items()))
    return f"{name}:{pairs}" if pairs else name


def list_files(settings: FilterSettings) -> tuple[str, ...]:
    """Return the paths of the files that the settings of a filter name."""
    paths: list[str] = []
    for field in dataclasses.fields(settings):
        if field.metadata.get(FILE):
            value = getattr(settings, field.name)
            paths += value if isinstance(value, tuple) else [value] if value else []
    return tuple(paths)


def list_runs(settings: FilterSettings) -> dict[str, str]:
    """Return the paths of the runs that the settings of a filter name, by the name of the setting."""
    fields = [field.name for field in dataclasses.fields(settings) if field.metadata.get(RUN)]
    return {name: getattr(settings, name) for name in fields}


def leave_out_folders(spec: str) -> str:
    """Return a filter as a manifest stores it: with the names of its files, as their folders differ by machine."""
    return map_files(spec, _get_name)


def map_files(spec: str, change: Callable[[str], str]) -> str:
    """Return a filter whose files have the paths that `change` returns for theirs."""
    name, settings = parse_filter(spec)
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if field.metadata.get(FILE) and (value := getattr(settings, field.name)):
            changes[field.name] = tuple(map(change, value)) if isinstance(value, tuple) else change(value)
    return format_filter(name, dataclasses.replace(settings, **changes)) if changes else spec


def _get_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _split(text: str) -> list[str]:
    """Return the parts of `text` between commas, with escaped commas and backslashes as themselves."""
    ends = [match.start(1) for match in COMMA.finditer(text)]
    starts = [0, *(end + 1 for end in ends)]
    parts = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [re.sub(r"\\([\\,])", r"\1", part).strip() for part in parts]


def _parse_value(what: str, text: str, hint: Any) -> Any:
    """Return the value of type `hint` that `text` represents. Raises MisuseError if it represents none."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in options and text == NONE:
        return None
    kind = options[0]
    if typing.get_origin(kind) is tuple:
        return tuple(part for part in text.split(LIST_SEPARATOR) if part)
    if kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        value = kind(text)
        if math.isfinite(value):
            return value
    except (ValueError, KeyError):
        pass
    expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
    or_none = f", or {NONE} to turn it off" if types.NoneType in options else ""
    raise MisuseError(f"{what} must be {expected}{or_none}, got {shorten(repr(text))}")


def _check_range(what: str, value: Any, limits: tuple[float, float] | None) -> None:
    if limits is not None and value is not None and not limits[0] <= value <= limits[1]:
        raise MisuseError(f"{what} must be from {limits[0]:,} to {limits[1]:,}, got {value:,}")


def _check_limits(name: str, settings: FilterSettings) -> None:
    """Raise MisuseError if a minimum is above its maximum: such a filter drops every document."""
    for field in dataclasses.fields(settings):
        what = field.name.removeprefix("min_")
        max_value = getattr(settings, f"max_{what}", None)
        if what == field.name or max_value is None:
            continue
        min_value = getattr(settings, field.name)
        if min_value is not None and min_value > max_value:
            raise MisuseError(
                f"min_{what} of the filter {name} must be at most max_{what}, got {min_value:,} and {max_value:,}; "
                "change one of them, or turn it off with none"
            )


def _format_value(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = LIST_SEPARATOR.join(value)
    return re.sub(r"([\\,])", r"\\\1", value) if isinstance(value, str) else repr(value)


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word[:100], list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(known))}"
