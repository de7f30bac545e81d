"""Find the files of a recipe: on the disk, in a mirror or the cache, or on the network.

A recipe names its files in one of three ways. `inputs` are files, folders and globs on the disk, and
URLs. `hub` is the URL of a built-in corpus, which is read if `inputs` is empty. `files` are the files
of a built-in corpus, which are downloaded if necessary. A synthetic corpus has none of these; its
only input is the vocabulary that the sentences are generated from.

A build copies all remote files first. An estimate copies a few of them, and a stream copies each file
when it is reached (on_demand.py).
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from preprocess.errors import MisuseError
from preprocess.inputs.describe import describe_input_files, number_files, sort_by_name
from preprocess.inputs.detect import show_suffix
from preprocess.inputs.disk_file import NO_SHA256, DiskFile
from preprocess.inputs.download import find_file
from preprocess.inputs.input_files import InputFile
from preprocess.inputs.list_paths import expand_inputs, list_paths, warn_about_skipped
from preprocess.inputs.part_names import find_missing_parts, find_mixed_splits
from preprocess.inputs.remote.addresses import is_remote, show_url
from preprocess.inputs.remote.fetch import FetchedFile, ListedFile, Listing, add_origins, copy_files, list_inputs
from preprocess.inputs.remote.on_demand import FilesOnDemand, choose_sample, make_uncopied
from preprocess.inputs.synthetic import VOCABULARY_FILE, read_vocabulary_file
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import sha256_bytes

OPTION = "--input"  # the command-line option that sets `inputs`


@dataclass(frozen=True)
class Sample:
    """The files that an estimate reads, and what it leaves out of the remote ones."""

    files: list[InputFile]
    num_files_left_out: int = 0
    num_bytes_left_out: int = 0


def find_input_files(
    recipe: Recipe, source: Path | None, progress: Progress, *, num_threads: int = 1
) -> list[InputFile]:
    """Return the input files of `recipe`: `inputs` sorted by name, or `files` in their order.

    `source` is the user's copy of the corpus' only file. `num_threads` threads compute the
    checksums of the files of `inputs`. Raises MisuseError if the recipe names no files, if one of
    `inputs` matches no file or a file of unknown format, or if `source` does not apply to the
    recipe, and FolioError if a file cannot be obtained.
    """
    if (files := _find_builtin(recipe, source, progress, OPTION)) is not None:
        return files
    listing = _list_remote(recipe, progress)
    fetched = listing.mirrored + copy_files(listing.remote, progress)
    return _number(_find(_Search(recipe, progress, num_threads=num_threads), fetched), recipe)


def find_sample(recipe: Recipe, source: Path | None, progress: Progress) -> Sample:
    """Return the input files of `recipe`, but only some of the remote ones if they are large.

    Files of `inputs` are not hashed. Raises the errors of `find_input_files`.
    """
    if (files := _find_builtin(recipe, source, progress, OPTION)) is not None:
        return Sample(files)
    listing = _list_remote(recipe, progress)
    chosen = choose_sample(listing.remote, recipe.seed)
    left_out = [item.file.size_bytes or 0 for item in listing.remote if item not in chosen]
    if left_out:
        progress.log(f"reading {len(chosen):,} of {len(listing.remote):,} remote files, which the seed chooses")
    fetched = listing.mirrored + copy_files(chosen, progress)
    names_left_out = tuple(item.file.name for item in listing.remote if item not in chosen)
    files = _find(_Search(recipe, progress, compute_sha256=False, names_left_out=names_left_out), fetched)
    return Sample(_number(files, recipe), len(left_out), sum(left_out))


def find_stream_files(recipe: Recipe, progress: Progress, inputs_name: str) -> tuple[list[InputFile], FilesOnDemand]:
    """Return the input files of `recipe`, and those among them that are copied when they are needed.

    The files of `inputs` are not hashed. `inputs_name` is how error messages refer to the setting
    `inputs`. Raises the errors of `find_input_files`.
    """
    if (files := _find_builtin(recipe, None, progress, inputs_name)) is not None:
        return files, FilesOnDemand({}, recipe)
    listing = _list_remote(recipe, progress)
    later: dict[str, ListedFile] = {}  # by the path that the copy will have
    uncopied: list[InputFile] = []
    now: list[ListedFile] = []
    for item in listing.remote:
        if file := make_uncopied(item.file, recipe):
            uncopied.append(file)
            later[file.path] = item
        else:
            now.append(item)
    fetched = listing.mirrored + copy_files(now, progress)
    found = _find(_Search(recipe, progress, inputs_name=inputs_name, compute_sha256=False), fetched, uncopied)
    files = _number(found, recipe)
    return files, FilesOnDemand({file.number: later[file.path] for file in files if file.path in later}, recipe)


def _find_builtin(recipe: Recipe, source: Path | None, progress: Progress, inputs_name: str) -> list[InputFile] | None:
    """Return the files of a recipe that has no inputs, None if it has some."""
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
    if get_inputs(recipe):
        return None
    if not recipe.files:
        raise MisuseError(_explain_missing_inputs(recipe, inputs_name))
    paths = [
        (file.name, str(find_file(recipe.corpus, file, source=source, progress=progress))) for file in recipe.files
    ]
    found = describe_input_files(paths, recipe, {file.name: file.sha256 for file in recipe.files}, num_threads=1)
    warn_about_skipped(found.skipped_suffixes, recipe, progress)
    return number_files(found.files, recipe)


def _list_remote(recipe: Recipe, progress: Progress) -> Listing:
    urls = [entry for entry in get_inputs(recipe) if is_remote(entry)]
    listing = list_inputs(urls, recipe.format, progress) if urls else Listing([], [], [])
    warn_about_skipped(Counter(map(show_suffix, listing.skipped)), recipe, progress)
    return listing


@dataclass(frozen=True)
class _Search:
    """What decides how the files of `inputs` are described."""

    recipe: Recipe
    progress: Progress
    inputs_name: str = OPTION
    num_threads: int = 1
    compute_sha256: bool = True
    names_left_out: tuple[str, ...] = ()  # of remote files that an estimate does not read


def _find(search: _Search, fetched: list[FetchedFile], uncopied: list[InputFile] | None = None) -> list[InputFile]:
    """Return the files of `inputs` on the disk, and those that were fetched or will be copied later."""
    recipe = dataclasses.replace(search.recipe, inputs=get_inputs(search.recipe))
    paths = [(file.name, file.path) for file in fetched] + list_paths(recipe, search.inputs_name, search.progress)
    known_sha256 = {} if search.compute_sha256 else dict.fromkeys((name for name, _ in paths), NO_SHA256)
    found = describe_input_files(paths, recipe, known_sha256, num_threads=search.num_threads)
    warn_about_skipped(found.skipped_suffixes, recipe, search.progress)
    files = add_origins(found.files, fetched) + (uncopied or [])
    if not files:
        problem = (
            "a known format; pass --format, or unpack it"
            if recipe.format == "auto"
            else f"the format {recipe.format}; leave --format out, or choose another"
        )
        raise MisuseError(f"{paths[0][1]} contains no file of {problem}")
    _warn_about_names([*(file.name for file in files), *search.names_left_out], recipe, search.progress)
    return files


def _warn_about_names(names: list[str], recipe: Recipe, progress: Progress) -> None:
    """Warn of files that seem to be missing, and of the files of several splits that are read as one corpus."""
    given = {os.path.basename(entry) for entry in recipe.inputs}  # who names a part wants no other one
    for line in find_missing_parts(name for name in names if posixpath.basename(name) not in given):
        progress.warn(line)
    for line in find_mixed_splits(names) if recipe.split != "given" else ():
        progress.warn(line)


def _number(files: list[InputFile], recipe: Recipe) -> list[InputFile]:
    return number_files(sort_by_name(files), recipe)


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
        sizes = (os.path.getsize(found.path) for found in expand_inputs(recipe, OPTION) if found.is_read)
    else:
        sizes = (file.bytes for file in recipe.files)
    totals = enumerate(itertools.accumulate(sizes), start=1)
    return any(total > num_bytes or count > num_files for count, total in totals)


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
