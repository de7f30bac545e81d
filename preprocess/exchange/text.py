"""Export a build as plain text, in UTF-8."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np

from preprocess.errors import MisuseError
from preprocess.exchange.output import prepare_output, write_together
from preprocess.shards.format import SPLITS, Build
from preprocess.shards.verify import check_known
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.decode_build import decode_documents, iter_languages, list_language_tags

MAX_LANGUAGES = 200  # one open file each


def export_text(build: Build, output: Path, *, by_language: bool, authors: bool, replace: bool) -> list[Path]:
    """Write the text of all documents to the folder `output`, and return the paths of the files.

    The files are `train.txt` and `val.txt`, or with `by_language` one per split and language, such
    as `train_ru.txt`. Documents without a language then go to `train_unknown.txt`. A blank line
    follows each document.

    Control tokens are omitted. With `authors` those of author, city and year are written before the
    text of each document, for example `<author_Anna_Akimova><year_1998>To be`. Text that itself
    contains such characters is not escaped, so it cannot be distinguished from control tokens.

    Raises MisuseError if there are more than MAX_LANGUAGES languages, if two of them would have the
    same file name, if the folder has such a file that this export does not write, or like
    `prepare_output`, and FolioError if the build is damaged.
    """
    suffixes = _make_suffixes(build) if by_language else dict.fromkeys(list_language_tags(build), "")
    with build.reading():
        languages = {split: _list_languages(build, split) for split in SPLITS}
        tokenizer = load_tokenizer(build.folder, build.manifest)
    paths = {
        (split, language): output / f"{split}{suffixes[language]}.txt"
        for split in SPLITS
        for language in languages[split]
    }
    distinct_paths = list(dict.fromkeys(paths.values()))
    # A validation text of another build beside the new training text would be taken for its own.
    pattern = "_*.txt" if by_language else ".txt"
    patterns = [f"{split}{pattern}" for split in SPLITS]
    prepare_output(output, distinct_paths, patterns=patterns, replace=replace)
    with write_together() as new, contextlib.ExitStack() as stack, build.reading():
        files = {path: stack.enter_context(new.open(path)) for path in distinct_paths}
        for split in SPLITS:
            for language, text in decode_documents(build, split, tokenizer, authors=authors):
                files[paths[split, language]].writelines((text, b"\n\n"))
    return distinct_paths


def _list_languages(build: Build, split: str) -> list[int]:
    """Return the language numbers that occur in `split`, in ascending order.

    Raises FolioError if a number is not in the manifest.
    """
    numbers: set[int] = set().union(*(np.unique(languages).tolist() for languages in iter_languages(build, split)))
    check_known(build, "language", numbers, list_language_tags(build))
    return sorted(numbers)


def _make_suffixes(build: Build) -> dict[int, str]:
    """Return the suffix of the file names of each language, such as `_ru`, by language number.

    Raises MisuseError if there are more than MAX_LANGUAGES languages, or if two of them would have
    the same suffix.
    """
    tags = list_language_tags(build)
    suffixes = {number: f"_{_make_file_name_part(tag)}" for number, tag in tags.items()}
    if len(set(suffixes.values())) < len(suffixes):
        raise MisuseError(
            f"two languages of {build.name} would share a file: {', '.join(tags.values())}; omit --by language"
        )
    if len(tags) > MAX_LANGUAGES:
        raise MisuseError(
            f"{build.name} has {len(tags):,} languages, but at most {MAX_LANGUAGES} files can be written; "
            "omit --by language"
        )
    return suffixes


def _make_file_name_part(tag: str) -> str:
    """Return the first 32 characters of a language tag, with unsafe characters replaced by `_`.

    Tags come from the metadata of the input and may contain any characters.
    """
    return re.sub(r"[^A-Za-z0-9-]", "_", tag)[:32]
