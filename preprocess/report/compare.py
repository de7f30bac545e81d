"""What the page of two builds shows: their settings, documents, tokens, lengths and languages side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preprocess.build.diff import Difference, Texts, compare_builds
from preprocess.build.stats import QUANTILES, explain_malformed, read_stats
from preprocess.errors import printable
from preprocess.pages.content import Cell, Page, Table, clean_text
from preprocess.report.count_tokens import compute_divergence, count_tokens
from preprocess.report.describe import MAX_ROWS, name_tokens
from preprocess.shards.files import JsonObject, canonical_json, parse_json
from preprocess.shards.format import SPLITS, Build
from preprocess.tokenizers.decode_build import decode_document

DIFFERS = "differs"
OTHER_VOCABULARY = "The builds have different vocabularies: their tokens are not compared."
MAX_TEXT_CHARACTERS = 600  # of the text of an example


@dataclass(frozen=True, kw_only=True)
class DocumentExample:
    """A document that only one of the builds has, or that is in another split of the other."""

    reason: str
    place: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ComparisonPage(Page):
    """The page of two builds."""

    examples: list[DocumentExample] = field(default_factory=list)


def describe_comparison(a: Build, b: Build) -> ComparisonPage:
    """Return what the page shows of two builds. All tokens and all hashes of documents are read.

    Raises FolioError if stats.json of a build is malformed, or a build is damaged.
    """
    found = compare_builds(a, b)
    with a.reading(), b.reading():
        both = [parse_json(read_stats(build)) for build in (a, b)]
        counts = [count_tokens(build, "train") + count_tokens(build, "val") for build in (a, b)]
        examples = _list_examples(found, (a, b))
        has_one_vocabulary = _have_one_vocabulary(a, b)
        texts = name_tokens(a) if has_one_vocabulary else []
    names = _name_builds(a, b)
    with explain_malformed():
        tables = [
            _describe_documents(found, names),
            _describe_settings(found, (a, b), names),
            _describe_funnels([stats["documents"] for stats in both], names),
            _describe_splits(both, names),
            *_describe_lengths(both, names),
            _describe_languages(both, names),
            *([_describe_tokens(counts, texts, names)] if has_one_vocabulary else []),
        ]
    return ComparisonPage(
        title=f"{names[0]} and {names[1]}",
        facts=_list_facts((a, b), counts, names, has_one_vocabulary=has_one_vocabulary),
        warnings=[] if has_one_vocabulary else [OTHER_VOCABULARY],
        tables=[table for table in tables if table.rows],
        examples=examples,
    )


def _name_builds(a: Build, b: Build) -> tuple[str, str]:
    """Return the names of the builds, or their folders if the names are equal."""
    names = (a.name, b.name) if a.name != b.name else (str(a.folder), str(b.folder))
    return clean_text(names[0]), clean_text(names[1])


def _have_one_vocabulary(a: Build, b: Build) -> bool:
    return (a.manifest.tokenizer.files, a.manifest.special_tokens) == (
        b.manifest.tokenizer.files,
        b.manifest.special_tokens,
    )


def _list_facts(
    builds: tuple[Build, Build], counts: list[np.ndarray], names: tuple[str, str], *, has_one_vocabulary: bool
) -> list[tuple[str, str]]:
    facts = []
    for build, name in zip(builds, names, strict=True):
        documents, tokens = (
            sum(getattr(e, key) for e in build.manifest.splits.values()) for key in ("documents", "tokens")
        )
        kind = build.manifest.tokenizer.kind
        facts.append((name, f"{documents:,} documents, {tokens:,} tokens of {kind}, build_id {build.build_id}"))
    if has_one_vocabulary and all(of_build.any() for of_build in counts):
        facts.append(
            (
                "tokens",
                f"Jensen-Shannon divergence {compute_divergence(*counts):.4f} bits (0: equal, 1: no common token)",
            )
        )
    return facts


def _describe_documents(found: Difference, names: tuple[str, str]) -> Table:
    rows: list[tuple[Cell, ...]] = [(label, texts.num_texts) for label, texts in _list_kinds(found, names)]
    return Table(
        id="documents",
        title="Documents",
        header=("texts", "number"),
        rows=rows,
        bars=(1,),
        note="Documents are compared by the hash of their text.",
    )


def _list_kinds(found: Difference, names: tuple[str, str]) -> list[tuple[str, Texts]]:
    return [
        (f"only in {names[0]}", found.only_in_a),
        (f"only in {names[1]}", found.only_in_b),
        ("in both, but in another split", found.in_other_split),
    ]


def _list_examples(found: Difference, builds: tuple[Build, Build]) -> list[DocumentExample]:
    names = _name_builds(*builds)
    examples = []
    for label, texts in _list_kinds(found, names):
        for place in texts.examples:
            parts = decode_document(builds[place.build], place.split, place.document)
            data = b"".join(part.data for part in parts if not part.is_control)
            text = data[: 4 * MAX_TEXT_CHARACTERS].decode("utf-8", "replace")[:MAX_TEXT_CHARACTERS]
            where = f"document {place.document:,} of {place.split} of {names[place.build]}"
            examples.append(DocumentExample(reason=label, place=where, text=printable(text)))
    return examples


def _describe_settings(found: Difference, builds: tuple[Build, Build], names: tuple[str, str]) -> Table:
    """Return what is different in the manifests, and then the settings of the recipes that are equal."""
    rows: list[tuple[Cell, ...]] = [
        (clean_text(key), *(_format_value(value) for value in values), DIFFERS)
        for key, values in found.settings.items()
    ]
    different = {key.removeprefix("recipe.") for key in found.settings}
    rows += [
        (f"recipe.{clean_text(key)}", _format_value(value), _format_value(value), "")
        for key, value in sorted(builds[0].manifest.recipe.items())
        if key not in different
    ]
    note = f"{len(found.settings):,} of {len(rows):,} differ"
    return Table(id="settings", title="Settings", header=("setting", *names, DIFFERS), rows=rows, mark=3, note=note)


def _format_value(value: object) -> str:
    return "" if value is None else clean_text(canonical_json(value).decode())


def _describe_funnels(documents: Sequence[JsonObject], names: tuple[str, str]) -> Table:
    totals = [max(int(of_build["read"]), 1) for of_build in documents]
    keys = [key for key in dict.fromkeys([*documents[0], *documents[1]]) if key not in ("read", "kept")]
    used = [key for key in keys if any(of_build.get(key) for of_build in documents)]
    rows: list[tuple[Cell, ...]] = []
    for key in ("read", *used, "kept"):
        numbers = [int(of_build.get(key, 0)) for of_build in documents]
        rows.append(
            (clean_text(key), *numbers, *(number / total for number, total in zip(numbers, totals, strict=True)))
        )
    header = ("documents", *names, *(f"share of {name}" for name in names))
    return Table(id="funnel", title="From documents read to documents kept", header=header, rows=rows, bars=(1, 2))


def _describe_splits(both: Sequence[JsonObject], names: tuple[str, str]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (f"{key.replace('_', ' ')} of {split}", *(int(stats["splits"][split][key]) for stats in both))
        for key in ("documents", "tokens", "text_bytes")
        for split in SPLITS
    ]
    rows.append(("bytes per token", *(_as_float(stats["bytes_per_token"]) for stats in both)))
    return Table(id="splits", title="Splits", header=("number", *names), rows=rows)


def _as_float(value: Any) -> float | None:
    return None if value is None else float(value)


def _describe_lengths(both: Sequence[JsonObject], names: tuple[str, str]) -> list[Table]:
    tables = []
    for split in SPLITS:
        lengths = [stats["tokens_per_document"].get(split) for stats in both]
        quantiles: list[tuple[Cell, ...]] = [
            (name, *(None if of_build is None else int(of_build[name]) for of_build in lengths)) for name in QUANTILES
        ]
        if any(lengths):
            title = f"Tokens per document of {split}"
            tables.append(Table(id=f"quantiles-{split}", title=title, header=("quantile", *names), rows=quantiles))
        bins = [
            {int(part["up_to"]): int(part["documents"]) for part in of_build["histogram"]} if of_build else {}
            for of_build in lengths
        ]
        edges = sorted({*bins[0], *bins[1]})
        tables.append(
            Table(
                id=f"lengths-{split}",
                title=f"Length of the documents of {split}",
                header=("tokens, at most", *names),
                rows=[(edge, *(of_build.get(edge, 0) for of_build in bins)) for edge in edges],
                bars=(1, 2),
                note="each row counts the documents that are longer than the row before says",
            )
        )
    return tables


def _describe_languages(both: Sequence[JsonObject], names: tuple[str, str]) -> Table:
    documents: list[Mapping[str, int]] = [
        {tag: int(totals["documents"]) for tag, totals in stats["languages"].items()} for stats in both
    ]
    tags = sorted({*documents[0], *documents[1]}, key=lambda tag: -max(of_build.get(tag, 0) for of_build in documents))
    rows: list[tuple[Cell, ...]] = [
        (clean_text(tag), *(of_build.get(tag, 0) for of_build in documents)) for tag in tags[:MAX_ROWS]
    ]
    return Table(
        id="languages", title="Languages", header=("language", *names), rows=rows, bars=(1, 2), note="documents"
    )


def _describe_tokens(counts: list[np.ndarray], texts: list[str], names: tuple[str, str]) -> Table:
    """Return the tokens whose shares of all tokens differ most."""
    shares = [of_build / max(int(of_build.sum()), 1) for of_build in counts]
    order = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")[:MAX_ROWS]
    rows: list[tuple[Cell, ...]] = [
        (int(i), texts[i], *(float(share[i]) for share in shares))
        for i in order.tolist()
        if shares[0][i] != shares[1][i]
    ]
    header = ("id", "token", *(f"share of {name}" for name in names))
    return Table(id="tokens", title="Tokens whose shares differ most", header=header, rows=rows, bars=(2, 3))
