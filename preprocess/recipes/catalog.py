"""Load a recipe: a built-in one, one from a TOML file, or the default one for `--input` files."""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError, first_line, shorten
from preprocess.recipes.filter_settings import map_files
from preprocess.recipes.input_urls import is_url
from preprocess.recipes.schema import Recipe, check_settings, parse_recipe, reject_unused_settings, suggest
from preprocess.shards.files import read_small_file

UNNAMED_CORPUS = "own"  # name of a corpus that consists of the files of `inputs` only
MAX_RECIPE_BYTES = 1 << 20
# A key of very many parts, such as a.b.c, which tomllib reads in quadratic time. The keys of recipes
# have one part.
DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){100}""")


def list_builtin_corpora() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    folder = importlib.resources.files("preprocess.recipes")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(corpus: Recipe | str | None, **overrides: Any) -> Recipe:
    """Return the recipe of `corpus` with the settings in `overrides`, except those that are None.

    `corpus` is a Recipe, the name of a built-in corpus, the path of a TOML file (it contains a
    separator or ends in `.toml`), or None if the corpus consists of the files of `inputs` only.
    Raises MisuseError if the recipe does not exist, or if a setting is invalid or has no effect.
    """
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items() if value is not None
    }
    check_settings(given)
    if corpus is None:
        recipe = Recipe(corpus=UNNAMED_CORPUS)
    else:
        recipe = corpus if isinstance(corpus, Recipe) else _load(corpus)
    if "template" in given and "text_column" in given:
        raise MisuseError("text_column and template both define the text of a row; leave one of them out")
    if "inputs" in given:
        given["files"] = ()
    recipe = dataclasses.replace(recipe, **given)
    name = corpus.corpus if isinstance(corpus, Recipe) else corpus or "these files"
    reject_unused_settings(recipe, given.keys() - {"files"}, name)
    return recipe


def find_licence(recipe: Mapping[str, Any]) -> str | None:
    """Return the licence of the data of a build, or None if it is not known.

    `recipe` is the one in the build's manifest. The licence is that of the built-in corpus with this
    name, unless the build read other files.
    """
    name = recipe.get("corpus")
    if not isinstance(name, str) or name not in list_builtin_corpora():
        return None
    corpus = _load(name)
    files = [{"name": file.name, "sha256": file.sha256, "bytes": file.bytes} for file in corpus.files]
    is_same_data = recipe.get("files", []) == files and recipe.get("format", corpus.format) == corpus.format
    return corpus.licence or None if is_same_data else None


def _load(corpus: str) -> Recipe:
    if is_url(corpus):
        raise MisuseError(f"--corpus {shorten(corpus)} is a URL; pass it with --input, or name a recipe")
    if corpus.endswith(".toml") or "/" in corpus or "\\" in corpus:
        return _read_file(Path(corpus))
    names = list_builtin_corpora()
    if corpus not in names:
        folder = " (it is a folder)" if corpus and os.path.isdir(corpus) else ""
        raise MisuseError(
            f"no corpus '{shorten(corpus)}'{folder}; to use a recipe file, name its path, such as ./mine.toml; "
            f"{suggest(corpus[:100], names)}"
        )
    text = (importlib.resources.files("preprocess.recipes") / f"{corpus}.toml").read_text(encoding="utf-8")
    return parse_recipe(tomllib.loads(text), origin=f"{corpus}.toml")


def _read_file(path: Path) -> Recipe:
    try:
        fields = _parse_toml(read_small_file(path, MAX_RECIPE_BYTES).decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MisuseError(f"no recipe {path}; name a TOML file, or one of {', '.join(list_builtin_corpora())}") from e
    except FolioError as e:
        raise MisuseError(f"the recipe {e}") from e
    except (ValueError, RecursionError) as e:  # UnicodeDecodeError and TOMLDecodeError are ValueErrors
        reason = "a number has thousands of digits" if "Exceeds the limit" in str(e) else shorten(first_line(e))
        raise MisuseError(f"{path} is not TOML ({reason}); correct it, or start from a built-in recipe") from e
    recipe = parse_recipe({"corpus": path.stem, **fields}, origin=str(path))
    # Inputs are relative to the recipe, so that a recipe and its data can be moved together.
    inputs = tuple(entry if is_url(entry) else str(path.parent / entry) for entry in recipe.inputs)
    decontaminate = tuple(str(path.parent / entry) for entry in recipe.decontaminate)
    filters = tuple(map_files(spec, lambda entry: str(path.parent / entry)) for spec in recipe.filters)
    return dataclasses.replace(recipe, inputs=inputs, decontaminate=decontaminate, filters=filters)


def _parse_toml(text: str) -> dict[str, Any]:
    if key := DEEP_KEY.search(text):
        raise ValueError(f"line {text.count(chr(10), 0, key.start()) + 1} has a key of 100 parts or more")
    return tomllib.loads(text)
