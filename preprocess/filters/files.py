"""The files that filters read, such as lists of words.

A build depends on the content of these files, but not on their folders. So a recipe stores the name of
each file and the SHA-256 of its content.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.filters.run_models import find_model
from preprocess.recipes.filter_settings import format_filter, list_files, list_runs, parse_filter
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import HASH_CHUNK_BYTES, open_regular_file, read_small_file


def hash_filter_files(recipe: Recipe) -> Recipe:
    """Return `recipe` with the SHA-256 of the files of its filters. A run becomes its newest checkpoint.

    Raises MisuseError if a file does not exist or is not a regular file.
    """
    specs = []
    for spec in recipe.filters:
        name, settings = parse_filter(spec)
        if runs := list_runs(settings):
            [(key, path)] = runs.items()
            folder, sha256 = find_model(path)
            spec = format_filter(name, dataclasses.replace(settings, sha256=sha256, **{key: str(folder)}))
        elif paths := list_files(settings):
            spec = format_filter(name, dataclasses.replace(settings, sha256=_hash(name, paths)))
        specs.append(spec)
    return dataclasses.replace(recipe, filters=tuple(specs))


def check_filter_files(name: str, paths: tuple[str, ...], sha256: str) -> None:
    """Raise FolioError if the files of the filter `name` are not those with the hash `sha256`.

    An empty `sha256` accepts any files.
    """
    if sha256 and _hash(name, paths) != sha256:
        raise FolioError(
            f"a file of the filter {name} has changed since the command began: {', '.join(map(shorten, paths))}; "
            "run the command again"
        )


def read_word_list(name: str, path: str, sha256: str) -> list[str]:
    """Return the lines of a list of words, without empty lines and white space at the ends.

    `name` is that of the filter. Raises FolioError if the file cannot be read, is not UTF-8, or is not
    the one with the hash `sha256`.
    """
    check_filter_files(name, (path,), sha256)
    try:
        text = read_small_file(Path(path)).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise FolioError(f"the file {shorten(path)} of the filter {name} is not UTF-8 ({e.reason}); convert it") from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _hash(name: str, paths: tuple[str, ...]) -> str:
    """Return the hexadecimal SHA-256 of the contents of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        for chunk in _read_chunks(name, path):
            digest.update(chunk)
    return digest.hexdigest()


def _read_chunks(name: str, path: str) -> Iterator[bytes]:
    try:
        with open_regular_file(Path(path)) as file:
            while chunk := file.read(HASH_CHUNK_BYTES):
                yield chunk
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MisuseError(f"the filter {name} names the file {shorten(path)}, which does not exist; correct it") from e
    except FolioError as e:
        raise MisuseError(f"the filter {name} names {shorten(path)}, which is not a regular file; name a file") from e
