"""How well a tokenizer fits text: a build's own on its validation documents, or any on a sample of a corpus."""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow as pa

from preprocess.build.estimate import read_some
from preprocess.build.plan import Plan
from preprocess.shards.format import Build
from preprocess.tokenizers import load_named, load_tokenizer
from preprocess.tokenizers.build_texts import UNKNOWN_LANGUAGE, language_tags, texts_of
from preprocess.tokenizers.inspect import inspect


def inspect_build(build: Build, num_documents: int) -> dict[str, dict[str, Any]]:
    """The build's tokenizer on its first `num_documents` validation documents, by language."""
    tokenizer = load_tokenizer(build.folder, build.manifest)
    tags = language_tags(build)
    texts: dict[str, list[str]] = {}
    for number, text in itertools.islice(texts_of(build, "val", tokenizer), num_documents):
        texts.setdefault(tags[number], []).append(text.decode("utf-8", errors="replace"))
    return _inspect(tokenizer, texts)


def inspect_named(name: str, plan: Plan, num_documents: int) -> dict[str, dict[str, Any]]:
    """The tokenizer `name` on a seeded sample of `num_documents` of a corpus, by language."""
    texts, languages = read_some(plan, num_documents)
    by_language: dict[str, list[str]] = {}
    for text, language in zip(texts.to_pylist(), languages.to_pylist(), strict=True):
        by_language.setdefault(language or UNKNOWN_LANGUAGE, []).append(text)
    return _inspect(load_named(name), by_language)


def _inspect(tokenizer: Any, texts: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    tokenizer.start_fast_backend()
    return inspect(tokenizer, {tag: pa.array(found, pa.large_string()) for tag, found in sorted(texts.items())})
