"""stats.json: what a build counted. It is deterministic; times and memory are in build_log.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.readers.records import format_counts
from preprocess.recipes.schema import CLEANING_RULES
from preprocess.shards.files import JsonObject
from preprocess.shards.format import CONTROL_FIELDS, SPLITS, STATS, Build, read_verified

# The reasons for which a document is dropped, in the order in which they are checked.
DROP_REASONS = (
    "malformed", "oversized", "invalid_utf8", "filtered", "null_text", "too_short", "too_long", "empty", "held_out",
    "duplicates", "over_max_documents",
)  # fmt: skip
MAX_LISTED_VALUES = 10_000  # authors in stats.json; all are counted
MAX_PRINTED_VALUES = 5
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}


class DocumentCounts:
    """Counts over the documents of a build. Memory grows with distinct lengths and names only."""

    def __init__(self) -> None:
        self.splits = {split: {"documents": 0, "tokens": 0, "text_bytes": 0} for split in SPLITS}
        self.lengths: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}  # tokens -> documents
        self.languages: dict[str, dict[str, int]] = {}
        self.authors: dict[str, Counter[str]] = {name: Counter() for name in CONTROL_FIELDS}
        self.num_u2581 = 0  # documents with U+2581

    def add(self, split: str, documents: np.ndarray, lengths: np.ndarray, values: Mapping[str, list[str]]) -> None:
        """Count the documents of one partition that are in `split`.

        `documents`: (D,) of DOCUMENT_DTYPE. `lengths`: (D,) tokens of each. `values`: of the
        partition's receipt.
        """
        for key, value in _sum_documents(documents, lengths).items():
            self.splits[split][key] += value
        self.lengths[split].update(_count_values(lengths))
        for index in np.unique(documents["lang"]).tolist():
            in_language = documents["lang"] == index
            tag = values["lang"][index] if index >= 0 else "unknown"
            totals = self.languages.setdefault(tag, {"documents": 0, "tokens": 0, "text_bytes": 0})
            for key, value in _sum_documents(documents[in_language], lengths[in_language]).items():
                totals[key] += value
        for name in CONTROL_FIELDS:
            counts = {index: count for index, count in _count_values(documents[name]).items() if index >= 0}
            texts = values.get(name)  # years have no list, as they are stored directly
            self.authors[name].update({texts[i] if texts else str(i): count for i, count in counts.items()})
        self.num_u2581 += int(documents["has_u2581"].sum())

    def total(self, key: str) -> int:
        """Return the sum of "documents", "tokens" or "text_bytes" over both splits."""
        return sum(totals[key] for totals in self.splits.values())


def _sum_documents(documents: np.ndarray, lengths: np.ndarray) -> dict[str, int]:
    return {
        "documents": len(documents),
        "tokens": int(lengths.sum()),
        "text_bytes": int(documents["text_bytes"].sum(dtype=np.int64)),
    }


def _count_values(array: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def describe_lengths(lengths: Counter[int]) -> JsonObject:
    """Return the mean, quantiles and histogram of document lengths. `lengths`: tokens -> documents.

    A quantile is the nearest rank, so it is a length that occurs. The bins of the histogram are
    powers of two.
    """
    values = np.array(sorted(lengths), np.int64)
    counts = np.array([lengths[v] for v in values.tolist()], np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1])
    bins: Counter[int] = Counter()
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        bins[1 << max(value - 1, 0).bit_length()] += count
    ranks = {name: round(quantile * (total - 1)) for name, quantile in QUANTILES.items()}
    return {
        "mean": round(float((values * counts).sum()) / total, 2),
        **{name: int(values[np.searchsorted(ends, rank, side="right")]) for name, rank in ranks.items()},
        "histogram": [{"up_to": edge, "documents": count} for edge, count in sorted(bins.items())],
    }


def _describe_languages(languages: dict[str, dict[str, int]]) -> JsonObject:
    return {
        tag: {**totals, "bytes_per_token": compute_ratio(totals["text_bytes"], totals["tokens"])}
        for tag, totals in languages.items()
    }


def _describe_authors(authors: dict[str, Counter[str]], num_documents: int) -> JsonObject:
    """Return how many documents have an author, city and year, and the most frequent values."""
    return {
        name: {
            "documents": counts.total(),
            "coverage": compute_ratio(counts.total(), num_documents),
            "distinct": len(counts),
            "documents_by_value": dict(_most_frequent(counts, MAX_LISTED_VALUES)),
        }
        for name, counts in authors.items()
    }


def _most_frequent(counts: Mapping[str, int], max_values: int) -> list[tuple[str, int]]:
    """Return the most frequent values with their counts; equal counts are sorted by value."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:max_values]


def describe_build(corpus: PreparedCorpus, counts: DocumentCounts, vocab_size: int) -> JsonObject:
    """Return the content of stats.json. `vocab_size`: control tokens included."""
    recipe, tokenizer = corpus.recipe, corpus.tokenizer
    dropped = sum_counts(receipt.dropped for receipt in corpus.receipts)
    dropped.update(corpus.assignment.dropped)
    # These are counted with the dropped documents, but the documents are in the build, changed.
    mended = {name: dropped.pop(name, 0) for name in ("cut", "unreadable_year")}
    if recipe.invalid_utf8 == "replace":
        mended["invalid_utf8"] = dropped.pop("invalid_utf8", 0)
    cleaned = sum_counts(receipt.cleaned for receipt in corpus.receipts)
    num_kept = counts.total("documents")
    num_tokens, text_bytes = counts.total("tokens"), counts.total("text_bytes")
    stats: JsonObject = {
        "documents": {
            "read": num_kept + dropped.total(),
            "kept": num_kept,
            **{reason: dropped[reason] for reason in DROP_REASONS},
        },
        "clean": {rule: cleaned[rule] for rule in CLEANING_RULES if rule in recipe.clean},
        "mended": mended,
        "split": {"mode": recipe.split, "val_fraction": recipe.val_fraction},
        "splits": counts.splits,
        "tokens": num_tokens,
        "text_bytes": text_bytes,
        "bytes_per_token": compute_ratio(text_bytes, num_tokens),
        "tokens_per_document": {split: describe_lengths(lengths) for split, lengths in counts.lengths.items()},
        "languages": _describe_languages(counts.languages),
        "authors": _describe_authors(counts.authors, num_kept),
        "vocabulary": {
            "tokenizer": tokenizer.vocab_size,
            "control": vocab_size - tokenizer.vocab_size,
            "vocab_size": vocab_size,
        },
    }
    if tokenizer.kind == "sentencepiece":
        # SentencePiece represents a space by U+2581, so a U+2581 in the text is decoded as a space.
        stats["documents_with_u2581"] = counts.num_u2581
    return stats


def sum_counts(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Return the sum of the counts of all partitions, by key."""
    total: Counter[str] = Counter()
    for of_partition in counts:
        total.update(of_partition)
    return total


def compute_ratio(numerator: int, denominator: int) -> float | None:
    """Return the ratio, rounded to four digits, unless the denominator is 0."""
    return round(numerator / denominator, 4) if denominator else None


def read_stats(build: Build) -> bytes:
    """Return the stats.json of `build`. Raises FolioError if the manifest has another hash."""
    return read_verified(build.folder / STATS, build.manifest.stats_sha256)


def format_stats(data: bytes) -> list[str]:
    """Return the content of stats.json as lines for a person."""
    stats = json.loads(data)
    always = ("read", "empty", "duplicates", "kept")
    documents = {key: n for key in ("read", *DROP_REASONS, "kept") if (n := stats["documents"][key]) or key in always}
    cleaned = [f"{rule} {count:,}" for rule, count in stats["clean"].items()]
    repaired = [f"{name} {count:,}" for name, count in stats["mended"].items() if count]
    lines = [
        "documents   " + ", ".join(format_counts(documents)),
        "cleaned     " + (", ".join(cleaned) or "nothing"),
        "repaired    " + (", ".join(repaired) or "no documents"),
        f"{'':12}{'documents':>12}{'tokens':>16}{'bytes of text':>17}{'bytes/token':>13}",
    ]
    for name, totals in [*((split, stats["splits"][split]) for split in SPLITS), *stats["languages"].items()]:
        bytes_per_token = compute_ratio(totals["text_bytes"], totals["tokens"]) or 0.0
        lines.append(
            f"{name:12}{totals['documents']:>12,}{totals['tokens']:>16,}{totals['text_bytes']:>17,}"
            f"{bytes_per_token:>13.2f}"
        )
    for split in SPLITS:
        lengths = stats["tokens_per_document"][split]
        quantiles = ", ".join(f"{name} {lengths[name]:,}" for name in QUANTILES)
        lines.append(f"tokens per document of {split}: mean {lengths['mean']:,}, {quantiles}")
    for name, entry in stats["authors"].items():
        if entry["distinct"]:
            frequent = _most_frequent(entry["documents_by_value"], MAX_PRINTED_VALUES)
            values = ", ".join(f"{value} {count:,}" for value, count in frequent)
            lines.append(f"{name:12}{entry['distinct']:,} in {entry['documents']:,} documents; most often {values}")
    return lines
