"""Inspect a build's tokenizer on its validation documents, or any tokenizer on part of a corpus."""

from __future__ import annotations

import itertools

import pyarrow as pa

from preprocess.build.estimate import choose_documents
from preprocess.build.plan import Plan
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer, load_tokenizer_by_name
from preprocess.tokenizers.decode_build import UNKNOWN_LANGUAGE, decode_documents, list_language_tags
from preprocess.tokenizers.inspect import Figures, inspect_tokenizer
from preprocess.tokenizers.interface import Tokenizer


def inspect_build(build: Build, num_documents: int) -> dict[str, Figures]:
    """Return the figures of a build's tokenizer for each language (see `inspect_tokenizer`).

    They are measured on the first `num_documents` validation documents, or training documents if
    there are no others. These do not contain characters that the tokenizer lost, so the coverage of
    a tokenizer that can lose characters is None. Raises FolioError if the build is damaged.
    """
    tags = list_language_tags(build)
    texts: dict[str, list[str]] = {}
    split = "val" if build.manifest.splits["val"].documents else "train"
    with build.reading():
        tokenizer = load_tokenizer(build.folder, build.manifest)
        for language, text in itertools.islice(decode_documents(build, split, tokenizer), num_documents):
            texts.setdefault(tags[language], []).append(text.decode("utf-8", errors="replace"))
    inspection = _inspect_texts(tokenizer, texts)
    if tokenizer.can_lose_characters:
        for figures in inspection.values():
            figures["character_coverage"] = None
    return inspection


def inspect_by_name(name: str, plan: Plan, num_documents: int) -> dict[str, Figures]:
    """Return the figures of the tokenizer `name` for each language (see `inspect_tokenizer`).

    They are measured on `num_documents` documents of the corpus of `plan`, which are selected with
    the recipe's seed. Raises FolioError if no document has text, and the errors of
    `load_tokenizer_by_name`.
    """
    texts, languages = choose_documents(plan, num_documents)
    by_language: dict[str, list[str]] = {}
    for text, language in zip(texts.to_pylist(), languages.to_pylist(), strict=True):
        by_language.setdefault(language or UNKNOWN_LANGUAGE, []).append(text)
    return _inspect_texts(load_tokenizer_by_name(name), by_language)


def _inspect_texts(tokenizer: Tokenizer, texts: dict[str, list[str]]) -> dict[str, Figures]:
    tokenizer.start_fast_backend()
    return inspect_tokenizer(tokenizer, {tag: pa.array(texts[tag], pa.large_string()) for tag in sorted(texts)})
