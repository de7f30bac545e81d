"""Other tools' files, and plain text, written from a build."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.files import written_aside
from preprocess.shards.format import SPLITS, Build, check_no_build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.build_texts import language_tags, texts_of

MAX_LANGUAGES = 200  # files that are open at a time


def export_text(build: Build, output: Path, *, by_language: bool, replace: bool) -> list[Path]:
    """Write the documents' text: `train.txt` and `val.txt`, or `train_ru.txt`, `val_en.txt` and so on by language.

    A blank line stands behind each document. `unknown` stands for documents that name no language. Control
    tokens are left out. Raises MisuseError where a file is there and `replace` is not set.
    """
    tags = language_tags(build)
    names = {number: f"_{_plain(tag)}" for number, tag in tags.items()} if by_language else dict.fromkeys(tags, "")
    if len(set(names.values())) < len(names) and by_language:
        raise MisuseError(
            f"two languages of {build.name} would share a file: {', '.join(tags.values())}; leave --by out"
        )
    if by_language and len(tags) > MAX_LANGUAGES:
        raise MisuseError(
            f"{build.name} has {len(tags):,} languages, a file for each of at most {MAX_LANGUAGES} can be written; leave --by out"
        )
    check_no_build(output, "in which nothing else may lie")
    languages = {split: set(np.unique(build.docs(split)["lang"]).tolist()) for split in SPLITS}
    paths = {(split, number): output / f"{split}{names[number]}.txt" for split in SPLITS for number in languages[split]}
    for path in paths.values():
        if path.exists() and not replace:
            raise MisuseError(f"{path} is there already; pass --replace, or choose another --output")
    tokenizer = load_tokenizer(build.folder, build.manifest)
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(written_aside(path)) for path in dict.fromkeys(paths.values())}
        for split in SPLITS:
            for number, text in texts_of(build, split, tokenizer):
                files[paths[split, number]].write(text + b"\n\n")
    return list(dict.fromkeys(paths.values()))


def _plain(tag: str) -> str:
    """A language's tag as part of a file's name: it comes from the text's metadata, which may hold anything."""
    return re.sub(r"[^A-Za-z0-9-]", "_", tag)[:32]
