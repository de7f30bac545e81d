"""List the files on the disk that a recipe's `inputs` mean: files, folders and globs."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator

from preprocess.errors import MisuseError, format_quantity, hide_credentials, shorten
from preprocess.inputs.detect import show_suffix
from preprocess.inputs.expand_glob import expand_glob, is_glob
from preprocess.inputs.remote.addresses import is_remote, resolve_file_url
from preprocess.inputs.standard_input import NAME as STANDARD_INPUT
from preprocess.inputs.standard_input import save_standard_input
from preprocess.inputs.walk_folder import FoundFile, check_is_file, reject_unlisted, walk_folder
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe

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
    skipped: list[str] = []
    for found in expand_inputs(recipe, inputs_name):
        if not found.is_read:
            skipped.append(found.path)
        elif found.is_link:
            paths.add(os.path.realpath(found.path))
        else:
            folder, name = os.path.split(found.path)
            paths.add(os.path.join(resolve_folder(folder), name))
    warn_about_skipped(Counter(map(show_suffix, skipped)), recipe, progress)
    prefix = os.path.join(os.path.commonpath({os.path.dirname(path) for path in paths}), "")
    return sorted((path[len(prefix) :].replace(os.sep, "/"), path) for path in paths)


def warn_about_skipped(suffixes: Counter[str], recipe: Recipe, progress: Progress) -> None:
    if suffixes:
        in_order = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))  # whatever order the folder has
        counts = ", ".join(f"{n:,} {shorten(suffix)}" for suffix, n in in_order[:6])
        kind = "unknown format" if recipe.format == "auto" else f"a format other than {recipe.format}"
        progress.warn(f"skipped {format_quantity(suffixes.total(), 'file')} of {kind}: {counts}")


def expand_inputs(recipe: Recipe, inputs_name: str) -> Iterator[FoundFile]:
    """Yield each file that matches one of the recipe's `inputs`.

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
        for found in _expand_entry(entry, inputs_name, recipe.format):
            num_read += found.is_read
            num_skipped += not found.is_read
            yield found
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


def _expand_entry(entry: str, inputs_name: str, recipe_format: str) -> Iterator[FoundFile]:
    if not entry:
        return
    if entry == STANDARD_INPUT:
        yield FoundFile(save_standard_input(), is_read=True, is_link=False)
        return
    if len(entry) > MAX_ENTRY_CHARACTERS or "\0" in entry:
        raise MisuseError(f"{inputs_name} {shorten(entry)} cannot be the path of a file; name a file or a folder")
    if os.path.isdir(entry):
        yield from walk_folder(entry, recipe_format)
    elif os.path.exists(entry):
        if not os.path.isfile(entry):
            raise MisuseError(f"{inputs_name} {entry} is not a regular file; name a file, a folder or a glob")
        yield FoundFile(entry, is_read=True, is_link=os.path.islink(entry))
    else:
        try:
            paths = list(expand_glob(entry))
        except OSError as e:
            reject_unlisted(e)
        for path in paths:
            if not os.path.isdir(path):
                check_is_file(path)
                yield FoundFile(path, is_read=True, is_link=os.path.islink(path))
