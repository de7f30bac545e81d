"""Where recipes come from: built in, a TOML file of the user's, or nothing but `--input`."""

from __future__ import annotations

import dataclasses
import importlib.resources
import tomllib
from pathlib import Path
from typing import Any

from preprocess.errors import MisuseError
from preprocess.recipes.schema import Recipe, check_settings, nearest, parse_recipe, reject_idle

OWN = "own"  # what a corpus is called that is nothing but files
MAX_RECIPE_BYTES = 10 << 20


def builtin_corpora() -> list[str]:
    """Names of the built-in recipes, sorted."""
    folder = importlib.resources.files("preprocess.recipes")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(corpus: Recipe | str | None, **overrides: Any) -> Recipe:
    """The recipe of `corpus`, with every override that is not None put in its place.

    `corpus`: a recipe, a built-in name, the path of a recipe (with a separator, or ending in `.toml`), or None for the files of `inputs`
    alone. Raises MisuseError.
    """
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items() if v is not None}
    check_settings(given)
    recipe = corpus if isinstance(corpus, Recipe) else Recipe(corpus=OWN) if corpus is None else _find(corpus)
    if "template" in given and "text_column" in given:
        raise MisuseError("text_column and template both say what a row's text is; leave one of them out")
    if "inputs" in given:
        given["files"] = ()
    recipe = dataclasses.replace(recipe, **given)
    reject_idle(
        recipe, given.keys() - {"files"}, corpus.corpus if isinstance(corpus, Recipe) else corpus or "these files"
    )
    return recipe


def _find(corpus: str) -> Recipe:
    if corpus.endswith(".toml") or "/" in corpus or "\\" in corpus:
        return _read(Path(corpus))
    names = builtin_corpora()
    if corpus not in names:
        folder = ", which is a folder" if Path(corpus).is_dir() and corpus else ""
        raise MisuseError(
            f"no corpus {corpus!r}{folder}; a recipe of your own is named by its path, such as ./mine.toml; {nearest(corpus, names)}"
        )
    text = (importlib.resources.files("preprocess.recipes") / f"{corpus}.toml").read_text(encoding="utf-8")
    return parse_recipe(tomllib.loads(text), where=f"{corpus}.toml")


def _read(path: Path) -> Recipe:
    if not path.is_file():
        raise MisuseError(f"no recipe {path}; name a TOML file, or one of {', '.join(builtin_corpora())}")
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise MisuseError(f"{path} has {path.stat().st_size:,} bytes, which is no recipe; name a TOML file")
        fields = tomllib.loads(path.read_bytes().decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise MisuseError(f"{path} is not TOML ({e}); mend it, or begin from a built-in recipe") from e
    recipe = parse_recipe({"corpus": path.stem, **fields}, where=str(path))
    # Inputs are the recipe's neighbours: a recipe and its data travel together.
    return dataclasses.replace(recipe, inputs=tuple(str(path.parent / entry) for entry in recipe.inputs))
