"""List the files on the disk that a recipe's `inputs` mean: files, folders and globs."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from preprocess.errors import FolioError, MisuseError, format_quantity, hide_credentials, shorten
from preprocess.inputs.detect import describes_data, detect_format_by_name, has_known_suffix
from preprocess.inputs.expand_glob import expand_glob, is_glob
from preprocess.inputs.remote.addresses import is_remote, resolve_file_url
from preprocess.inputs.standard_input import NAME as STANDARD_INPUT
from preprocess.inputs.standard_input import save_standard_input
from preprocess.progress import Progress
from preprocess.recipes.schema import TABLE_FORMATS, Recipe
from preprocess.shards.files import read_small_file
from preprocess.shards.format import MANIFEST, TOKENIZER_DIR
from preprocess.shards.manifest_file import FORMAT, MAX_FILE_BYTES

MAX_ENTRY_CHARACTERS = 4_096  # of one of `inputs`; longer paths do not exist on any system


def list_paths(recipe: Recipe, inputs_name: str, progress: Progress) -> list[tuple[str, str]]:
    """Return (name, path) of every file that matches the recipe's `inputs`, each file once, sorted by name.

    A name is the path relative to the deepest folder that contains all files. URLs are left out. Warns
    about files in folders that are skipped because of their names.
    """
    if all(map(is_remote, recipe.inputs)):
        return []
    local = ", ".join(hide_credentials(entry) for entry in recipe.inputs if not is_remote(entry))
    progress.log(f"reading the names and checksums of {shorten(local)}")
    resolve_folder = functools.cache(os.path.realpath)  # most files share their folder with others
    paths: set[str] = set()
    suffixes: Counter[str] = Counter()  # of the files that are skipped
    for path, is_read in expand_inputs(recipe, inputs_name):
        if is_read:
            folder, name = os.path.split(path)
            paths.add(os.path.realpath(path) if os.path.islink(path) else os.path.join(resolve_folder(folder), name))
        else:
            suffixes[os.path.splitext(path)[1].lower() or "no suffix"] += 1
    warn_about_skipped(suffixes, recipe, progress)
    prefix = os.path.join(os.path.commonpath({os.path.dirname(path) for path in paths}), "")
    return sorted((path[len(prefix) :].replace(os.sep, "/"), path) for path in paths)


def warn_about_skipped(suffixes: Counter[str], recipe: Recipe, progress: Progress) -> None:
    if suffixes:
        counts = ", ".join(f"{n:,} {shorten(suffix)}" for suffix, n in suffixes.most_common(6))
        kind = "unknown format" if recipe.format == "auto" else f"a format other than {recipe.format}"
        progress.warn(f"skipped {format_quantity(suffixes.total(), 'file')} of {kind}: {counts}")


def expand_inputs(recipe: Recipe, inputs_name: str) -> Iterator[tuple[str, bool]]:
    """Yield (path, is_read) for each file that matches one of the recipe's `inputs`.

    A file found in a folder is read only if its suffix is known or, with a format in the recipe, if it
    is not that of another format. Raises MisuseError if one of `inputs` matches no file that is read,
    and FolioError if a file or a folder among the matches cannot be read, because its text would be
    missing from the build.
    """
    inputs = list(recipe.inputs)
    if STANDARD_INPUT in inputs and len(set(inputs)) > 1:
        raise MisuseError(f"{inputs_name} - is standard input, which cannot be read together with other files")
    for entry in (resolve_file_url(entry) for entry in inputs if not is_remote(entry)):
        num_read = num_skipped = 0
        for path, is_read in _expand_entry(entry, inputs_name, recipe.format):
            num_read += is_read
            num_skipped += not is_read
            yield path, is_read
        if not num_read:
            raise MisuseError(_explain_no_match(entry, inputs_name, num_skipped, recipe.format))


def _explain_no_match(entry: str, inputs_name: str, num_skipped: int, recipe_format: str) -> str:
    advice = "name a file, a folder, or a glob in quotes such as 'data/*.jsonl.zst'"
    shown = shorten(entry) or repr(entry)
    if num_skipped and recipe_format != "auto":
        skipped = f"the names of {format_quantity(num_skipped, 'file')} are not those of {recipe_format} files"
        return f"{inputs_name} {shown} matches no file; {skipped}: pass a glob, or leave --format out; {advice}"
    if num_skipped:
        skipped = f"the format of {format_quantity(num_skipped, 'file')} is unknown"
        return f"{inputs_name} {shown} matches no file; {skipped}: pass --format; {advice}"
    if entry and not is_glob(entry) and not os.path.lexists(entry):
        return f"{inputs_name} {shown} does not exist; {advice}"
    return f"{inputs_name} {shown} matches no file; {advice}"


def _expand_entry(entry: str, inputs_name: str, recipe_format: str) -> Iterator[tuple[str, bool]]:
    if not entry:
        return
    if entry == STANDARD_INPUT:
        yield save_standard_input(), True
        return
    if len(entry) > MAX_ENTRY_CHARACTERS or "\0" in entry:
        raise MisuseError(f"{inputs_name} {shorten(entry)} cannot be the path of a file; name a file or a folder")
    if os.path.isdir(entry):
        yield from _walk(entry, recipe_format)
    elif os.path.exists(entry):
        if not os.path.isfile(entry):
            raise MisuseError(f"{inputs_name} {entry} is not a regular file; name a file, a folder or a glob")
        yield entry, True
    else:
        try:
            paths = list(expand_glob(entry))
        except OSError as e:
            _reject_unlisted(e)
        for path in paths:
            if not os.path.isdir(path):
                _check_is_file(path)
                yield path, True


def _walk(folder: str, recipe_format: str) -> Iterator[tuple[str, bool]]:
    """Yield (path, is_read) for the files below `folder`, except hidden files and those of builds.

    Links to folders are followed. A folder that several links lead to is listed once. Beside tables,
    files that describe a data set are left out, such as README.md and dataset_info.json.
    """
    descriptions: list[tuple[str, bool]] = []
    has_tables = recipe_format in TABLE_FORMATS
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, onerror=_reject_unlisted, followlinks=True):
        status = os.stat(parent)
        if (identity := (status.st_dev, status.st_ino)) in seen or _is_build(parent, folders, names):
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            path, is_read = os.path.join(parent, name), has_known_suffix(name, recipe_format)
            if describes_data(name):
                descriptions.append((path, is_read))
                continue
            has_tables = has_tables or detect_format_by_name(name) in TABLE_FORMATS
            if is_read:
                _check_is_file(path)
            yield path, is_read
    for path, is_read in descriptions if not has_tables else ():
        if is_read:
            _check_is_file(path)
        yield path, is_read


def _is_build(parent: str, folders: list[str], names: list[str]) -> bool:
    """Return whether `parent`, which contains `folders` and files with `names`, is a build.

    A data set of another program can have a file and a folder with the names of a build's, too.
    """
    if MANIFEST not in names or TOKENIZER_DIR not in folders:
        return False
    try:
        manifest = read_small_file(Path(parent, MANIFEST), MAX_FILE_BYTES)
    except FolioError:  # not a regular file, or too large
        return False
    return f'"format": "{FORMAT}"'.encode() in manifest


def _check_is_file(path: str) -> None:
    """Raise FolioError if `path` is not a regular file, such as a link to a file that does not exist."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return
        problem = "is not a regular file"
    except OSError as e:
        problem = f"cannot be read ({e.strerror})"
        if isinstance(e, FileNotFoundError) and os.path.islink(path):
            problem = f"is a link to {shorten(repr(os.readlink(path)))}, which does not exist"
    raise FolioError(f"{path} {problem}; without it the build would be smaller: repair or remove it")


def _reject_unlisted(error: OSError) -> NoReturn:
    raise FolioError(
        f"the folder {error.filename} cannot be listed ({error.strerror}); change its permissions, or name other files"
    ) from error
