"""Inspect a build's tokenizer on its validation documents, or any tokenizer on part of a corpus."""

from __future__ import annotations

import itertools
from collections import Counter

import pyarrow as pa

from preprocess.build.estimate import choose_documents
from preprocess.build.plan import Plan
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer, load_tokenizer_by_name
from preprocess.tokenizers.decode_build import UNKNOWN_LANGUAGE, decode_documents, list_language_tags
from preprocess.tokenizers.inspect import MAX_BYTES, MAX_CHARACTERS, Figures, inspect_tokenizer
from preprocess.tokenizers.interface import Tokenizer


def inspect_build(build: Build, num_documents: int) -> dict[str, Figures]:
    """Return the figures of a build's tokenizer for each language (see `inspect_tokenizer`).

    They are measured on the first `num_documents` validation documents, or training documents if
    there are no others. These do not contain characters that the tokenizer lost, so the coverage of
    a tokenizer that can lose characters is None. Raises FolioError if the build is damaged.
    """
    tags = list_language_tags(build)
    texts: dict[str, list[bytes]] = {}
    sizes = Counter[str]()  # bytes of the texts of each language
    split = "val" if build.manifest.splits["val"].documents else "train"
    with build.reading():
        tokenizer = load_tokenizer(build.folder, build.manifest)
        for language, text in itertools.islice(decode_documents(build, split, tokenizer), num_documents):
            if sizes[tags[language]] <= MAX_BYTES:  # others are not measured
                shortened = text.decode("utf-8", errors="replace")[:MAX_CHARACTERS].encode()
                texts.setdefault(tags[language], []).append(shortened)
                sizes[tags[language]] += len(shortened)
    inspection = _inspect_texts(tokenizer, {tag: pa.array(of_tag, pa.large_string()) for tag, of_tag in texts.items()})
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
    rows: dict[str, list[int]] = {}
    for row, language in enumerate(languages.to_pylist()):
        rows.setdefault(language or UNKNOWN_LANGUAGE, []).append(row)
    tokenizer = load_tokenizer_by_name(name)
    return _inspect_texts(tokenizer, {tag: texts.take(pa.array(of_tag)) for tag, of_tag in rows.items()})


def _inspect_texts(tokenizer: Tokenizer, texts: dict[str, pa.LargeStringArray]) -> dict[str, Figures]:
    tokenizer.start_fast_backend()
    return inspect_tokenizer(tokenizer, {tag: texts[tag] for tag in sorted(texts)})
