"""Find the files of a recipe: on the disk, in a mirror or the cache, or on the network.

A recipe names its files in one of three ways. `inputs` are files, folders and globs on the disk, and
URLs. `hub` is the URL of a built-in corpus, which is read if there are no `inputs`. `files` are the
files of a built-in corpus, which are downloaded if necessary. A synthetic corpus has none of these;
its only input is the vocabulary that the sentences are generated from.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from preprocess.errors import MisuseError, format_quantity, shorten
from preprocess.inputs.describe import describe_input_files, number_files, sort_by_name
from preprocess.inputs.disk_file import NO_SHA256, DiskFile
from preprocess.inputs.download import find_file
from preprocess.inputs.expand_glob import expand_glob, is_glob
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.remote.addresses import is_remote, resolve_file_url, show_url
from preprocess.inputs.remote.fetch import FetchedFile, add_origins, fetch_inputs
from preprocess.inputs.standard_input import NAME as STANDARD_INPUT
from preprocess.inputs.standard_input import save_standard_input
from preprocess.inputs.synthetic import VOCABULARY_FILE, read_vocabulary_file
from preprocess.inputs.walk_folder import FoundFile, check_is_file, reject_unlisted, walk_folder
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import sha256_bytes

OPTION = "--input"  # the command-line option that sets `inputs`
MAX_ENTRY_CHARACTERS = 4_096  # of one of `inputs`; longer paths do not exist on any system


def find_input_files(
    recipe: Recipe,
    source: Path | None,
    progress: Progress,
    *,
    num_threads: int = 1,
    compute_sha256: bool = True,
    inputs_name: str = OPTION,
) -> list[InputFile]:
    """Return the input files of `recipe`: `inputs` sorted by name, or `files` in their order.

    `source` is the user's copy of the corpus' only file. `num_threads` threads compute the
    checksums of the files of `inputs`; if `compute_sha256` is false, these files are not read.
    `inputs_name` is how error messages refer to the setting `inputs`. Raises MisuseError if the
    recipe names no files, if one of `inputs` matches no file or a file of unknown format, or if
    `source` does not apply to the recipe, and FolioError if a file cannot be obtained.
    """
    if source is not None and recipe.inputs:
        raise MisuseError(
            "--source is a copy of the corpus' only file, but --input names other files; leave one of them out"
        )
    if source is not None and len(recipe.files) != 1:
        raise MisuseError(
            f"--source requires a corpus with exactly one file, but {recipe.corpus} has {len(recipe.files)}; "
            "leave --source out"
        )
    if recipe.format == "synthetic":
        if recipe.inputs:
            raise MisuseError(
                f"{inputs_name} {show_url(recipe.inputs[0])}: {recipe.corpus} is generated and reads no file; "
                "leave it out"
            )
        vocabulary = read_vocabulary_file()
        sha256 = sha256_bytes(vocabulary)
        disk = DiskFile("", len(vocabulary), 0, 0, sha256)
        return [InputFile(disk, "synthetic", len(vocabulary), sha256, name=VOCABULARY_FILE)]
    inputs = get_inputs(recipe)
    fetched: list[FetchedFile] = []
    if inputs:
        recipe = dataclasses.replace(recipe, inputs=inputs)
        urls = [entry for entry in inputs if is_remote(entry)]
        fetched = fetch_inputs(urls, recipe.format, progress) if urls else []
        paths = [(file.name, file.path) for file in fetched] + _list_inputs(recipe, inputs_name, progress)
        known_sha256 = {} if compute_sha256 else dict.fromkeys((name for name, _ in paths), NO_SHA256)
    elif recipe.files:
        paths = [
            (file.name, str(find_file(recipe.corpus, file, source=source, progress=progress))) for file in recipe.files
        ]
        known_sha256 = {file.name: file.sha256 for file in recipe.files}
    else:
        raise MisuseError(_explain_missing_inputs(recipe, inputs_name))
    found = describe_input_files(paths, recipe, known_sha256, num_threads=num_threads)
    _warn_about_skipped(found.skipped_suffixes, recipe, progress)
    if not found.files:
        problem = (
            "a known format; pass --format, or unpack it"
            if recipe.format == "auto"
            else f"the format {recipe.format}; leave --format out, or choose another"
        )
        raise MisuseError(f"{paths[0][1]} contains no file of {problem}")
    files = add_origins(found.files, fetched)
    return number_files(sort_by_name(files) if recipe.inputs else files, recipe)


def get_inputs(recipe: Recipe) -> tuple[str, ...]:
    """Return the files, folders, globs and URLs to read, () for a recipe with `files` or without input.

    A corpus of the hub is read from the folder of its name in the mirror, if there is one.
    """
    if recipe.inputs or recipe.files or not is_remote(recipe.hub):
        return recipe.inputs
    mirror = os.environ.get("PREPROCESS_MIRROR")
    folder = os.path.join(mirror, recipe.corpus) if mirror else ""
    return (folder if os.path.isdir(folder) else recipe.hub,)


def is_larger(recipe: Recipe, num_bytes: int, num_files: int) -> bool:
    """Return whether there are more than `num_files` input files or more than `num_bytes` of input.

    Files are listed only until the answer is known. Raises MisuseError if one of `inputs` matches
    no file.
    """
    inputs = get_inputs(recipe)
    if any(map(is_remote, inputs)):
        return True  # probably; asking the service would take longer
    if inputs:
        recipe = dataclasses.replace(recipe, inputs=inputs)
        sizes = (os.path.getsize(found.path) for found in _expand(recipe, OPTION) if found.is_read)
    else:
        sizes = (file.bytes for file in recipe.files)
    totals = enumerate(itertools.accumulate(sizes), start=1)
    return any(total > num_bytes or count > num_files for count, total in totals)


def _list_inputs(recipe: Recipe, inputs_name: str, progress: Progress) -> list[tuple[str, str]]:
    """Return (name, path) of every file that matches the recipe's `inputs`, each file once, sorted by name.

    A name is the path relative to the deepest folder that contains all files. URLs are left out. Warns
    about files in folders that are skipped because of their names.
    """
    if all(map(is_remote, recipe.inputs)):
        return []
    local = ", ".join(entry for entry in recipe.inputs if not is_remote(entry))
    progress.log(f"reading the names and checksums of {shorten(local)}")
    resolve_folder = functools.cache(os.path.realpath)  # most files share their folder with others
    paths: set[str] = set()
    suffixes: Counter[str] = Counter()  # of the files that are skipped
    for found in _expand(recipe, inputs_name):
        if not found.is_read:
            suffixes[os.path.splitext(found.path)[1].lower() or "no suffix"] += 1
        elif found.is_link:
            paths.add(os.path.realpath(found.path))
        else:
            folder, name = os.path.split(found.path)
            paths.add(os.path.join(resolve_folder(folder), name))
    _warn_about_skipped(suffixes, recipe, progress)
    prefix = os.path.join(os.path.commonpath({os.path.dirname(path) for path in paths}), "")
    return sorted((path[len(prefix) :].replace(os.sep, "/"), path) for path in paths)


def _warn_about_skipped(suffixes: Counter[str], recipe: Recipe, progress: Progress) -> None:
    if suffixes:
        counts = ", ".join(f"{n:,} {shorten(suffix)}" for suffix, n in suffixes.most_common(6))
        kind = "unknown format" if recipe.format == "auto" else f"a format other than {recipe.format}"
        progress.warn(f"skipped {format_quantity(suffixes.total(), 'file')} of {kind}: {counts}")


def _expand(recipe: Recipe, inputs_name: str) -> Iterator[FoundFile]:
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


def _explain_missing_inputs(recipe: Recipe, inputs_name: str) -> str:
    """Return the error message for a recipe with none of `inputs`, `hub` and `files`."""
    if inputs_name == OPTION:
        return (
            f"{recipe.corpus} names no files to read; pass --input with its files, for example --input 'data/*.parquet'"
        )
    return (
        f"{recipe.corpus} names no files to read; in a recipe file write inputs = ['data/*.parquet'] with its files, "
        "in Python pass inputs=('data/*.parquet',)"
    )
