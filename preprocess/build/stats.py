"""stats.json: counts for people and reports. Deterministic: clock times are in build_log.json."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np

from preprocess.readers.records import format_counts
from preprocess.recipes.schema import CLEANING_RULES, Recipe
from preprocess.shards.format import CONTROL_FIELDS, SPLITS, STATS, Build, read_vouched
from preprocess.tokenizers.interface import Tokenizer

# Why a document that was read is not in the build, in the order in which it is looked at.
REASONS = (
    "malformed", "oversized", "invalid_utf8", "filtered", "null_text", "too_short", "too_long", "empty", "held_out", "duplicates",
    "over_max_documents",
)  # fmt: skip
MAX_LISTED = 10_000  # authors named in stats.json; all are counted
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}


class Counts:
    """What is counted of the documents that stay, batch by batch: memory grows with distinct lengths and names, not with documents."""

    def __init__(self) -> None:
        self.splits = {split: {"documents": 0, "tokens": 0, "text_bytes": 0} for split in SPLITS}
        self.lengths: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
        self.languages: dict[str, dict[str, int]] = {}
        self.authors: dict[str, Counter[str]] = {field: Counter() for field in CONTROL_FIELDS}
        self.num_u2581 = 0

    def add(self, split: str, documents: np.ndarray, lengths: np.ndarray, lists: dict[str, list[str]]) -> None:
        """Count (D,) documents of the work folder's tables, their lengths in tokens, and `lists`, which their numbers stand in."""
        totals = {
            "documents": len(documents),
            "tokens": int(lengths.sum()),
            "text_bytes": int(documents["text_bytes"].sum(dtype=np.int64)),
        }
        for key, value in totals.items():
            self.splits[split][key] += value
        values, counts = np.unique(lengths, return_counts=True)
        self.lengths[split].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        for number in np.unique(documents["lang"]).tolist():
            rows = documents["lang"] == number
            entry = self.languages.setdefault(
                lists["lang"][number] if number >= 0 else "unknown", dict.fromkeys(totals, 0)
            )
            entry["documents"] += int(rows.sum())
            entry["tokens"] += int(lengths[rows].sum())
            entry["text_bytes"] += int(documents["text_bytes"][rows].sum(dtype=np.int64))
        for name in CONTROL_FIELDS:
            values, counts = np.unique(documents[name], return_counts=True)
            spelled = {
                (lists[name][v] if name in lists else str(v)): n
                for v, n in zip(values.tolist(), counts.tolist(), strict=True)
                if v >= 0
            }
            self.authors[name].update(spelled)
        self.num_u2581 += int(documents["has_u2581"].sum())

    def total(self, key: str) -> int:
        """Documents, tokens or text_bytes of both splits."""
        return sum(entry[key] for entry in self.splits.values())


def describe_lengths(lengths: Counter[int]) -> dict[str, Any]:
    """Mean, quantiles (nearest rank, so always a length that occurs) and a histogram by powers of two of the documents by length."""
    values = np.array(sorted(lengths), np.int64)
    counts = np.array([lengths[v] for v in values.tolist()], np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1])
    bins: Counter[int] = Counter()
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        bins[1 << max(value - 1, 0).bit_length()] += count
    return {
        "mean": round(float((values * counts).sum()) / total, 2),
        **{
            name: int(values[np.searchsorted(ends, round(q * (total - 1)), side="right")])
            for name, q in QUANTILES.items()
        },
        "histogram": [{"up_to": edge, "documents": count} for edge, count in sorted(bins.items())],
    }


def describe_languages(languages: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Documents, text bytes, tokens and bytes per token of each language; "unknown" where a document names none."""
    return {
        tag: {**entry, "bytes_per_token": ratio(entry["text_bytes"], entry["tokens"])}
        for tag, entry in languages.items()
    }


def describe_authors(authors: dict[str, Counter[str]], num_documents: int) -> dict[str, Any]:
    """For author, city and year: documents that have one, their share, how many distinct there are, and documents of each, most first."""
    out = {}
    for field, counts in authors.items():
        shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_LISTED]
        out[field] = {
            "documents": counts.total(),
            "coverage": ratio(counts.total(), num_documents),
            "distinct": len(counts),
            "documents_by_value": dict(shown),
        }
    return out


def describe_build(
    recipe: Recipe,
    receipts: list[dict[str, Any]],
    dropped: dict[str, int],
    counts: Counts,
    tokenizer: Tokenizer,
    vocab_size: int,
) -> dict[str, Any]:
    """What stats.json holds. `receipts`: of every partition; `dropped`: what was decided against, by reason."""
    by_reason, cleaned = sum_counts(receipts, "dropped"), sum_counts(receipts, "cleaned")
    by_reason.update(dropped)
    mended = {name: by_reason.pop(name, 0) for name in ("cut", "unreadable_year")}
    if recipe.invalid_utf8 == "replace":
        mended["invalid_utf8"] = by_reason.pop("invalid_utf8", 0)
    kept = counts.total("documents")
    num_tokens, num_bytes = counts.total("tokens"), counts.total("text_bytes")
    stats: dict[str, Any] = {
        "documents": {
            "read": kept + by_reason.total(),
            "kept": kept,
            **{reason: by_reason[reason] for reason in REASONS},
        },
        "clean": {rule: cleaned[rule] for rule in CLEANING_RULES if rule in recipe.clean},
        "mended": mended,
        "split": {"mode": recipe.split, "val_fraction": recipe.val_fraction},
        "splits": counts.splits,
        "tokens": num_tokens,
        "text_bytes": num_bytes,
        "bytes_per_token": ratio(num_bytes, num_tokens),
        "tokens_per_document": {split: describe_lengths(lengths) for split, lengths in counts.lengths.items()},
        "languages": describe_languages(counts.languages),
        "authors": describe_authors(counts.authors, kept),
        "vocabulary": {
            "tokenizer": tokenizer.vocab_size,
            "control": vocab_size - tokenizer.vocab_size,
            "vocab_size": vocab_size,
        },
    }
    if tokenizer.kind == "sentencepiece":
        # SentencePiece spells the space with U+2581: where a text has that sign, decoding gives a space.
        stats["documents_with_u2581"] = counts.num_u2581
    return stats


def sum_counts(receipts: list[dict[str, Any]], key: str) -> Counter[str]:
    """What the partitions' receipts counted under `key`, "dropped" or "cleaned", all together."""
    total: Counter[str] = Counter()
    for receipt in receipts:
        total.update(receipt[key])
    return total


def ratio(a: int, b: int) -> float | None:
    """a / b to four places; None where b is 0."""
    return round(a / b, 4) if b else None


def read_stats(build: Build) -> bytes:
    """The stats.json of `build`, as its manifest vouches for it. Raises FolioError where it is another."""
    return read_vouched(build.folder / STATS, build.manifest["stats_sha256"])


def format_stats(data: bytes) -> list[str]:
    """What stats.json holds, as lines for a person."""
    stats = json.loads(data)
    always = ("read", "empty", "duplicates", "kept")
    counted = {key: n for key in ("read", *REASONS, "kept") if (n := stats["documents"][key]) or key in always}
    lines = [
        "documents   " + ", ".join(format_counts(counted)),
        "cleaned     " + (", ".join(f"{rule} {count:,}" for rule, count in stats["clean"].items()) or "nothing"),
        "mended      "
        + (", ".join(f"{what} {count:,}" for what, count in stats["mended"].items() if count) or "nothing"),
        f"{'':12}{'documents':>12}{'tokens':>16}{'bytes of text':>17}{'bytes/token':>13}",
    ]
    for name, entry in [*((split, stats["splits"][split]) for split in SPLITS), *stats["languages"].items()]:
        per_token = ratio(entry["text_bytes"], entry["tokens"]) or 0.0
        lines.append(
            f"{name:12}{entry['documents']:>12,}{entry['tokens']:>16,}{entry['text_bytes']:>17,}{per_token:>13.2f}"
        )
    for split in SPLITS:
        lengths = stats["tokens_per_document"][split]
        lines.append(
            f"tokens per document of {split}: mean {lengths['mean']:,}, "
            + ", ".join(f"{q} {lengths[q]:,}" for q in QUANTILES)
        )
    for field, entry in stats["authors"].items():
        if entry["distinct"]:
            most = sorted(entry["documents_by_value"].items(), key=lambda item: (-item[1], item[0]))[:5]
            named = ", ".join(f"{value} {count:,}" for value, count in most)
            lines.append(f"{field:12}{entry['distinct']:,} in {entry['documents']:,} documents; most often {named}")
    return lines
