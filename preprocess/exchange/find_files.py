"""Find the files of tokens of an import, and which of them are for validation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.inputs.token_files import TokenNames

VAL_WORDS, TEST_WORDS = {"val", "valid", "validation"}, {"test", "eval", "heldout"}


def find_token_paths(paths: Sequence[Path], val_paths: Sequence[Path], names: TokenNames) -> tuple[list[Path], ...]:
    """Return the files of tokens for training and for validation, at `paths` and `val_paths`.

    The files of a folder are sorted by their path. If there are no `val_paths`, the files in a folder
    whose path has the word val, valid or validation are for validation. Raises MisuseError if a folder
    has no files with the suffix of the format, if a path does not exist or is given twice, or if all files are
    for validation, and FolioError if a file is missing that an index in a folder names.
    """
    train: list[Path] = []
    val = [file for path in val_paths for file in _list_files(path, names)]
    for path in paths:
        for file in _list_files(path, names):
            words = set() if file == path else set(re.split(r"[^a-z]+", str(file.relative_to(path)).lower()))
            if words & TEST_WORDS:
                raise MisuseError(
                    f"{path} has test files, such as {file.name}; name the files to import, and the validation files "
                    "with --val"
                )
            (val if words & VAL_WORDS and not val_paths else train).append(file)
    if not train:
        raise MisuseError(f"{paths[0]} has no training files; name them, and the validation files with --val")
    _check_distinct([*train, *val])
    return train, val


def _list_files(path: Path, names: TokenNames) -> list[Path]:
    if path.is_dir():
        if names.check_folder is not None:
            names.check_folder(path)
        found = sorted(file for file in path.rglob(f"*{names.suffix}") if file.is_file())
        _check_companions(path, names)
        if not found:
            raise MisuseError(f"{path} has no files named *{names.suffix}; check --format, or name the files")
        return found
    if not path.exists():
        raise MisuseError(f"{path} does not exist; name the files of tokens, or their folder")
    if not path.name.endswith(names.suffix):
        raise MisuseError(
            f"{shorten(str(path))} is not named like a file of tokens of this format, *{names.suffix}; check --format"
        )
    return [path]


def _check_companions(folder: Path, names: TokenNames) -> None:
    """Raise FolioError if a companion in `folder`, such as an index, is without its file of tokens."""
    for suffix in (*names.required, *names.optional):
        for companion in sorted(folder.rglob(f"*{suffix if names.replaces_suffix else names.suffix + suffix}")):
            is_hidden = any(part.startswith(".") for part in companion.relative_to(folder).parts)
            path = companion.with_name(names.find_tokens(companion.name, suffix))
            if not is_hidden and not path.exists():
                raise FolioError(
                    f"{companion} has no {path.name} beside it; copy that file again, or name the files to import"
                )


def _check_distinct(paths: Iterable[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if (real := path.resolve()) in seen:
            raise FolioError(f"{path} is given twice; name each file once")
        seen.add(real)
