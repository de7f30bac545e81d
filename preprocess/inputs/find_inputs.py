"""TODO."""

from __future__ import annotations

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from preprocess.errors import MisuseError
from preprocess.inputs.download import find_file
from preprocess.inputs.input_files import InputFile, describe_input_files, format_by_name
from preprocess.inputs.synthetic import VOCABULARY_FILE, vocabulary_file
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe
from preprocess.shards.files import sha256_bytes
from preprocess.shards.format import MANIFEST, TOKENIZER_DIR

UNHASHED = "none"  # in place of a sha256

OPTION = "--input"  # what asks for `inputs` on the command line


def find_inputs(inputs: Iterable[str], asked_by: str = OPTION) -> tuple[list[tuple[str, Path]], list[str]]:
    """Name and path of every file that `inputs` (files, folders, globs) stand for, by name, each once; and what folders held besides.

    The name is relative to the folder that all of them share. `asked_by`: where a message says that they are named.
    Raises MisuseError where one stands for nothing.
    """
    paths: set[Path] = set()
    left_out: list[str] = []
    for path, is_read in _expand(inputs, asked_by):
        if is_read:
            paths.add(path.resolve())
        else:
            left_out.append(path.name)
    base = os.path.commonpath([path.parent for path in paths])
    named = sorted((path.relative_to(base).as_posix(), path) for path in paths)
    for name, path in named:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as e:
            raise MisuseError(f"the name of {path} is not UTF-8, which no manifest can hold; rename the file") from e
    return named, left_out


def is_larger(recipe: Recipe, num_bytes: int) -> bool:
    """Whether there is more than `num_bytes` to read. Of many files, only as many are looked at as it takes to know."""
    found = (path.stat().st_size for path, is_read in _expand(recipe.inputs) if is_read)
    sizes = found if recipe.inputs else (file.bytes for file in recipe.files)
    return any(total > num_bytes for total in itertools.accumulate(sizes))


def _expand(inputs: Iterable[str], asked_by: str = OPTION) -> Iterator[tuple[Path, bool]]:
    """The files that `inputs` stand for, and whether each is to be read: not those in folders whose names tell no format.

    Raises MisuseError where one stands for nothing.
    """
    for entry in inputs:
        num_read = num_passed_over = 0
        for path, is_read in _expand_one(entry, asked_by):
            num_read += is_read
            num_passed_over += not is_read
            yield path, is_read
        if not num_read:
            why = (
                f"; {num_passed_over:,} files are there whose names tell no format: pass a glob and --format"
                if num_passed_over
                else ""
            )
            wanted = "name a file, a folder, or a glob in quotes such as 'data/*.jsonl.zst'"
            raise MisuseError(f"{asked_by} {entry or repr(entry)} matches no file{why}; {wanted}")


def _expand_one(entry: str, asked_by: str) -> Iterator[tuple[Path, bool]]:
    path = Path(entry)
    if not entry:
        return
    if path.is_dir():
        yield from _walk(path)
    elif path.exists():
        if not path.is_file():
            raise MisuseError(f"{asked_by} {entry} is no regular file; name a file, a folder or a glob")
        yield path, True
    else:
        yield from ((p, True) for p in map(Path, glob.iglob(entry, recursive=True)) if p.is_file())


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The files below `folder`, but for hidden ones and those of builds, which were made of others."""
    for here, folders, names in os.walk(folder):
        if MANIFEST in names and TOKENIZER_DIR in folders:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(here) / name for name in names if not name.startswith(".")):
            if path.is_file():
                yield path, format_by_name(path.name)[0] is not None


def find_input_files(
    recipe: Recipe,
    source: Path | None,
    progress: Progress,
    *,
    num_threads: int = 1,
    is_hashed: bool = True,
    asked_by: str = OPTION,
) -> list[InputFile]:
    """The files that `recipe` names, found. `is_hashed`: whether those of `inputs` are read for their sha256, or have UNHASHED for it.

    `asked_by`: where `inputs` stand, as a message says it.
    """
    if source is not None and recipe.inputs:
        raise MisuseError(
            "--source is a copy of the corpus' own file, --input names other files; leave one of them out"
        )
    if source is not None and len(recipe.files) != 1:
        raise MisuseError(f"--source stands for one file, {recipe.corpus} has {len(recipe.files)}; leave it out")
    if recipe.format == "synthetic":
        if recipe.inputs:
            raise MisuseError(
                f"{asked_by} {recipe.inputs[0]}: {recipe.corpus} is generated and reads no file; leave it out"
            )
        vocabulary = vocabulary_file()
        return [InputFile(0, VOCABULARY_FILE, "", "synthetic", "", len(vocabulary), 0, sha256_bytes(vocabulary), {})]
    if recipe.inputs:
        progress.say(f"reading the names and checksums of {', '.join(recipe.inputs)[:200]}")
        named, left_out = find_inputs(recipe.inputs, asked_by)
        if left_out:
            kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in left_out)
            shown = ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common(6))
            progress.warn(f"{len(left_out):,} files were passed over, whose names tell no format: {shown}")
        vouched = {} if is_hashed else dict.fromkeys((name for name, _ in named), UNHASHED)
        return describe_input_files(named, recipe, vouched, num_threads=num_threads)
    if not recipe.files:
        where = f"the Parquet files of {recipe.hub}" if recipe.hub else "its files"
        if asked_by == OPTION:
            raise MisuseError(
                f"{recipe.corpus} is not fetched by itself; pass --input with {where}, for example --input 'data/*.parquet'"
            )
        file = f"a copy of preprocess/recipes/{recipe.corpus}.toml" if recipe.hub else "a recipe file"
        raise MisuseError(
            f"{recipe.corpus} names no files to read; in {file} write inputs = ['data/*.parquet'] with {where}, in Python pass "
            "inputs=('data/*.parquet',)"
        )
    paths = [find_file(recipe.corpus, file, source=source, progress=progress) for file in recipe.files]
    vouched = {file.name: file.sha256 for file in recipe.files}
    return describe_input_files(
        [(file.name, path) for file, path in zip(recipe.files, paths, strict=True)],
        recipe,
        vouched,
        num_threads=num_threads,
    )
