"""Recipe: everything that decides a build's bytes, typed, from TOML.

Nothing else may decide them: not the machine, the mirror, the clock or the number of workers (architecture law 4).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import math
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from preprocess.errors import MisuseError

# In the order they are applied: entities may spell any character, and only what is left at the end is trimmed.
CLEANING_RULES = ("html_entities", "line_ends", "control_characters", "byte_order_mark", "nfc", "white_space", "trim")
DEFAULT_RULES = ("line_ends", "control_characters", "byte_order_mark", "nfc")
MIN_PIECES = 300  # 256 bytes, the control pieces, and a little
CHOICES: dict[str, tuple[str, ...]] = {
    "format": ("text", "synthetic"),
    "document": ("file", "passage"),
    "split": ("exact", "contiguous"),
    "tokenizer": ("gpt2", "sentencepiece", "char", "byte"),
    "eot": ("append", "none"),
}
# (least, most) of the numeric settings, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    "passage_characters": (1, 1 << 40),
    "num_pieces": (MIN_PIECES, 64_000),
    "num_pairs": (1, 1_000_000),  # of far more that are possible: every sentence made is remembered
    "shard_tokens": (1, 1 << 40),
    "seed": (0, (1 << 64) - 1),
    "year": (0, 9999),
}


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a corpus: its name under the corpus, and what vouches for it."""

    name: str
    sha256: str
    bytes: int
    url: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to read, how to treat it, and how to write it.

    `description`, `licence` and the files' `url` are for people and for fetching: they are not in the manifest, so
    correcting them changes no `build_id`.
    """

    corpus: str
    description: str
    licence: str
    format: str  # text: the files below; synthetic: generated from `seed`
    tokenizer: str
    files: tuple[SourceFile, ...] = ()
    num_pairs: int = 10_000  # synthetic only
    document: str = "file"  # file: a document a file; passage: cut at blank lines
    passage_characters: int = 2_000
    author: str | None = None  # of every document, where the text does not say
    city: str | None = None
    year: int | None = None
    lang: str | None = None
    clean: tuple[str, ...] = DEFAULT_RULES
    dedup: bool = True
    split: str = "exact"
    val_fraction: float = 0.1
    authors: bool = True  # control tokens of author, city and year in front of each document
    bos: bool = False  # the tokenizer's begin-of-text token in front of each document, where it has one
    eot: str = "append"
    num_pieces: int = 3_000  # sentencepiece only
    shard_tokens: int = 100_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise MisuseError(f"{name} is {getattr(self, name)!r}, wanted one of {', '.join(allowed)}")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise MisuseError(f"{name} is {value:,}, wanted {least:,} to {most:,}")
        if not (math.isfinite(self.val_fraction) and 0 < self.val_fraction < 1):
            raise MisuseError(f"val_fraction is {self.val_fraction}, wanted a number between 0 and 1, such as 0.1")
        if self.format == "synthetic" and self.split == "contiguous":
            raise MisuseError("split is 'contiguous', which cuts files, and the corpus has none; wanted 'exact'")
        if self.document == "passage" and self.split != "contiguous":
            raise MisuseError("document is 'passage', which cuts the sides of a contiguous split; wanted 'file', or split 'contiguous'")
        if unknown := [rule for rule in self.clean if rule not in CLEANING_RULES]:
            raise MisuseError(f"no cleaning rule is called {unknown[0]!r}, wanted one of {', '.join(CLEANING_RULES)}")

    def resolved(self) -> dict[str, Any]:
        """The recipe as `manifest.json` holds it: settings that decide bytes, whether given or default."""
        fields = dataclasses.asdict(self)
        for name in ("description", "licence"):
            del fields[name]
        fields["files"] = [{"name": f.name, "sha256": f.sha256, "bytes": f.bytes} for f in self.files]
        fields["clean"] = [rule for rule in CLEANING_RULES if rule in self.clean]
        for name in _without_effect(self):
            del fields[name]
        return fields


def _without_effect(recipe: Recipe) -> list[str]:
    """Settings that cannot touch a byte of this recipe's build: two builds that differ only there are one build."""
    is_synthetic, is_cut = recipe.format == "synthetic", recipe.split == "contiguous"
    idle = {
        "num_pairs": not is_synthetic,
        "document": not is_cut,
        "passage_characters": recipe.document != "passage",
        "num_pieces": recipe.tokenizer != "sentencepiece",
        "bos": recipe.tokenizer != "sentencepiece",
        "seed": is_cut and not is_synthetic,
    }
    return [name for name, is_idle in idle.items() if is_idle]


def builtin_corpora() -> list[str]:
    """Names of the built-in recipes, sorted."""
    folder = importlib.resources.files("preprocess.recipes")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(corpus: str, **overrides: Any) -> Recipe:
    """The built-in recipe of `corpus`, with every override that is not None put in its place. Raises MisuseError."""
    names = builtin_corpora()
    if corpus not in names:
        raise MisuseError(f"no corpus {corpus!r}; {nearest(corpus, names)}")
    text = (importlib.resources.files("preprocess.recipes") / f"{corpus}.toml").read_text(encoding="utf-8")
    given = {k: v for k, v in overrides.items() if v is not None}
    recipe = dataclasses.replace(parse_recipe(tomllib.loads(text), where=f"{corpus}.toml"), **given)
    if idle := sorted(set(_without_effect(recipe)) & given.keys()):
        raise MisuseError(
            f"{idle[0]} has no effect on {corpus} with the {recipe.tokenizer} tokenizer; leave --{idle[0].replace('_', '-')} out"
        )
    return recipe


def parse_recipe(fields: dict[str, Any], *, where: str) -> Recipe:
    """A Recipe from parsed TOML; an unknown key, a missing one or a wrong type is a MisuseError that names it."""
    files = tuple(_parse(SourceFile, entry, f"{where}: files[{i}]") for i, entry in enumerate(fields.get("files", [])))
    recipe: Recipe = _parse(Recipe, {**fields, "files": files}, where)
    return recipe


def _parse(cls: Any, fields: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    for key, value in fields.items():
        if key not in hints:
            raise MisuseError(f"{where}: no setting is called {key!r}; {nearest(key, hints)}")
        if not _fits(value, hints[key]):
            raise MisuseError(f"{where}: {key} is {value!r}, wanted {_spell(hints[key])}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in fields and f.default is dataclasses.MISSING]
    if missing:
        raise MisuseError(f"{where}: {missing[0]} is missing, wanted {_spell(hints[missing[0]])}")
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


def _spell(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """What to write instead: the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"wanted one of {', '.join(sorted(known))}"
