"""Find the files of a recipe: on the disk, in a mirror or the cache, or on the network.

A recipe names its files in one of two ways. `inputs` are files, folders and globs on the disk.
`files` are the files of a built-in corpus, which are downloaded if necessary. A synthetic corpus
has neither; its only input is the vocabulary that the sentences are generated from.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from preprocess.errors import MisuseError
from preprocess.inputs.download import find_file
from preprocess.inputs.input_files import InputFile, describe_input_files, detect_format
from preprocess.inputs.synthetic import VOCABULARY_FILE, read_vocabulary_file
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import sha256_bytes
from preprocess.shards.format import MANIFEST, TOKENIZER_DIR

NO_SHA256 = "none"  # InputFile.sha256 of a file that was not hashed
OPTION = "--input"  # the command-line option that sets `inputs`


def find_input_files(
    recipe: Recipe,
    source: Path | None,
    progress: Progress,
    *,
    num_threads: int = 1,
    compute_sha256: bool = True,
    inputs_name: str = OPTION,
) -> list[InputFile]:
    """Return the input files of `recipe`, sorted by name for `inputs`, in recipe order for `files`.

    `source` is the user's copy of the corpus' only file. If `compute_sha256` is false, the files of
    `inputs` are listed but not read. `inputs_name` is how error messages refer to the setting
    `inputs`. Raises MisuseError if the recipe names no files or contradicts `source`, FolioError if
    a file cannot be obtained.
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
                f"{inputs_name} {recipe.inputs[0]}: {recipe.corpus} is generated and reads no file; leave it out"
            )
        vocabulary = read_vocabulary_file()
        return [InputFile(0, VOCABULARY_FILE, "", "synthetic", "", len(vocabulary), 0, sha256_bytes(vocabulary), {})]
    if recipe.inputs:
        paths = _list_inputs(recipe.inputs, inputs_name, progress)
        known_sha256 = {} if compute_sha256 else dict.fromkeys((name for name, _ in paths), NO_SHA256)
    elif recipe.files:
        paths = [(file.name, find_file(recipe.corpus, file, source=source, progress=progress)) for file in recipe.files]
        known_sha256 = {file.name: file.sha256 for file in recipe.files}
    else:
        raise MisuseError(_explain_missing_inputs(recipe, inputs_name))
    return describe_input_files(paths, recipe, known_sha256, num_threads=num_threads)


def is_larger(recipe: Recipe, num_bytes: int) -> bool:
    """Return whether the input files have more than `num_bytes` in total.

    Files are examined only until the answer is known.
    """
    if recipe.inputs:
        sizes = (path.stat().st_size for path, is_read in _expand(recipe.inputs, OPTION) if is_read)
    else:
        sizes = (file.bytes for file in recipe.files)
    return any(total > num_bytes for total in itertools.accumulate(sizes))


def _list_inputs(inputs: Iterable[str], inputs_name: str, progress: Progress) -> list[tuple[str, Path]]:
    """Return (name, path) of every file that matches `inputs`, each file once, sorted by name.

    A name is the path relative to the deepest folder that contains all files. Warns about files in
    folders that are skipped because their names have no known suffix.
    """
    progress.log(f"reading the names and checksums of {', '.join(inputs)[:200]}")
    paths: set[Path] = set()
    skipped: list[Path] = []
    for path, is_read in _expand(inputs, inputs_name):
        if is_read:
            paths.add(path.resolve())
        else:
            skipped.append(path)
    if skipped:
        suffixes = Counter(path.suffix.lower() or "no suffix" for path in skipped)
        counts = ", ".join(f"{n:,} {suffix}" for suffix, n in suffixes.most_common(6))
        progress.warn(f"{len(skipped):,} files were skipped because their format is unknown: {counts}")
    base = os.path.commonpath([path.parent for path in paths])
    named_paths = sorted((path.relative_to(base).as_posix(), path) for path in paths)
    for name, path in named_paths:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as e:
            raise MisuseError(
                f"the name of {path} is not UTF-8, so the manifest cannot contain it; rename the file"
            ) from e
    return named_paths


def _expand(inputs: Iterable[str], inputs_name: str) -> Iterator[tuple[Path, bool]]:
    """Yield (path, is_read) for each file that matches one of `inputs`.

    A file found in a folder is read only if its suffix is known. Raises MisuseError if one of
    `inputs` matches no file that is read.
    """
    for entry in inputs:
        num_read = num_skipped = 0
        for path, is_read in _expand_entry(entry, inputs_name):
            num_read += is_read
            num_skipped += not is_read
            yield path, is_read
        if not num_read:
            skipped = (
                f"; the format of {num_skipped:,} files is unknown: pass a glob and --format" if num_skipped else ""
            )
            advice = "name a file, a folder, or a glob in quotes such as 'data/*.jsonl.zst'"
            raise MisuseError(f"{inputs_name} {entry or repr(entry)} matches no file{skipped}; {advice}")


def _expand_entry(entry: str, inputs_name: str) -> Iterator[tuple[Path, bool]]:
    path = Path(entry)
    if not entry:
        return
    if path.is_dir():
        yield from _walk(path)
    elif path.exists():
        if not path.is_file():
            raise MisuseError(f"{inputs_name} {entry} is not a regular file; name a file, a folder or a glob")
        yield path, True
    else:
        yield from ((p, True) for p in map(Path, glob.iglob(entry, recursive=True)) if p.is_file())


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the files below `folder`, without hidden files and without the contents of builds."""
    for parent, folders, names in os.walk(folder):
        if MANIFEST in names and TOKENIZER_DIR in folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent) / name for name in names if not name.startswith(".")):
            if path.is_file():
                yield path, detect_format(path.name)[0] is not None


def _explain_missing_inputs(recipe: Recipe, inputs_name: str) -> str:
    """Return the error message for a recipe with neither `inputs` nor `files`."""
    needed = f"the Parquet files of {recipe.hub}" if recipe.hub else "its files"
    if inputs_name == OPTION:
        return (
            f"{recipe.corpus} is not downloaded automatically; pass --input with {needed}, for example "
            "--input 'data/*.parquet'"
        )
    recipe_file = f"a copy of preprocess/recipes/{recipe.corpus}.toml" if recipe.hub else "a recipe file"
    return (
        f"{recipe.corpus} names no files to read; in {recipe_file} write inputs = ['data/*.parquet'] with {needed}, "
        "in Python pass inputs=('data/*.parquet',)"
    )
