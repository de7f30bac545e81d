"""Other tools' files, and plain text, written from a build."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.errors import FolioError, MisuseError
from preprocess.publish import require_no_build
from preprocess.shards.files import HASH_CHUNK_BYTES, written_aside
from preprocess.shards.format import SPLITS, Build
from preprocess.tokenizers import load_tokenizer
from preprocess.tokenizers.interface import Tokenizer

UNKNOWN_LANGUAGE = "unknown"
MAX_LANGUAGES = 200  # files that are open at a time


def export_nanogpt(build: Build, output: Path, *, replace: bool) -> list[Path]:
    """Write `train.bin` and `val.bin`: bare little-endian uint16 tokens, the shards one after the other.

    No `meta.pkl`: it is a pickle, and nanoGPT's sampler takes one to mean a character vocabulary.
    Raises MisuseError where the ids need more than 16 bits, or where a file is there and `replace` is not set.
    """
    if build.dtype != np.dtype("<u2"):
        raise MisuseError(f"{build.name} has {build.vocab_size:,} ids, nanoGPT reads uint16; rebuild with a vocabulary of at most 65,536")
    require_no_build(output, "in which nothing else may lie")
    paths = [output / f"{split}.bin" for split in SPLITS]
    for path in paths:
        if path.exists() and not replace:
            raise MisuseError(f"{path} is there already; pass --replace, or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    # Both are written before either takes its place: a failure leaves no pair of which one is old.
    with contextlib.ExitStack() as stack:
        for split, path in zip(SPLITS, paths, strict=True):
            file = stack.enter_context(written_aside(path))
            for shard in build.shards(split):
                for start in range(0, len(shard.tokens), HASH_CHUNK_BYTES):
                    file.write(shard.tokens[start : start + HASH_CHUNK_BYTES].data)
    return paths


def export_text(build: Build, output: Path, *, by_language: bool, replace: bool) -> list[Path]:
    """Write the documents' text: `train.txt` and `val.txt`, or `train_ru.txt`, `val_en.txt` and so on by language.

    A blank line stands behind each document. `unknown` stands for documents that name no language. Control
    tokens are left out. Raises MisuseError where a file is there and `replace` is not set.
    """
    tags = language_tags(build)
    names = {number: f"_{_plain(tag)}" for number, tag in tags.items()} if by_language else dict.fromkeys(tags, "")
    if len(set(names.values())) < len(names) and by_language:
        raise MisuseError(f"two languages of {build.name} would share a file: {', '.join(tags.values())}; leave --by out")
    if by_language and len(tags) > MAX_LANGUAGES:
        raise MisuseError(
            f"{build.name} has {len(tags):,} languages, a file for each of at most {MAX_LANGUAGES} can be written; leave --by out"
        )
    require_no_build(output, "in which nothing else may lie")
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


def language_tags(build: Build) -> dict[int, str]:
    """The tag that each number of a language in the document tables stands for."""
    return {0: UNKNOWN_LANGUAGE, **{int(number): tag for number, tag in build.manifest["languages"].items()}}


def texts_of(build: Build, split: str, tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    """The number of the language, and the text in UTF-8, of each document of `split`, control tokens left out.

    Raises FolioError for an id outside the vocabulary.
    """
    is_control = np.zeros(build.vocab_size, bool)
    is_control[list(build.manifest["special_tokens"].values())] = True
    for number, ids in zip(build.docs(split)["lang"], _documents(build, split), strict=True):
        if len(ids) and int(ids.max()) >= build.vocab_size:
            raise FolioError(f"{build.folder} holds an id outside its vocabulary; check it with `preprocess verify`")
        yield int(number), tokenizer.decode_bytes(ids[~is_control[ids]])


def _documents(build: Build, split: str) -> Iterator[np.ndarray]:
    for shard in build.shards(split):
        for begin, end in itertools.pairwise([0, *shard.ends.tolist()]):
            yield shard.tokens[begin:end]


def _plain(tag: str) -> str:
    """A language's tag as part of a file's name: it comes from the text's metadata, which may hold anything."""
    return re.sub(r"[^A-Za-z0-9-]", "_", tag)[:32]
