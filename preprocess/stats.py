"""stats.json: counts for people and reports. Deterministic: clock times are in build_log.json."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.shards.format import CONTROL_FIELDS, SPLITS, STATS, Build, read_vouched

QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}


def describe_lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Mean, quantiles (nearest rank, so always a length that occurs) and a histogram by powers of two of (D,) lengths."""
    ordered = np.sort(lengths)
    last = len(ordered) - 1
    bins = Counter(1 << max(int(n) - 1, 0).bit_length() for n in lengths.tolist())
    return {
        "mean": round(float(ordered.mean()), 2),
        **{name: int(ordered[round(q * last)]) for name, q in QUANTILES.items()},
        "histogram": [{"up_to": edge, "documents": count} for edge, count in sorted(bins.items())],
    }


def describe_languages(table: pa.Table, lengths: np.ndarray, text_bytes: np.ndarray) -> dict[str, Any]:
    """Documents, text bytes, tokens and bytes per token of each language; "unknown" where a document names none."""
    tags = pc.fill_null(table.column("lang").combine_chunks(), "unknown").dictionary_encode()
    codes = tags.indices.to_numpy(zero_copy_only=False)
    out = {}
    for code, tag in enumerate(tags.dictionary.to_pylist()):
        rows = codes == code
        num_tokens, num_bytes = int(lengths[rows].sum()), int(text_bytes[rows].sum())
        out[tag] = {
            "documents": int(rows.sum()),
            "text_bytes": num_bytes,
            "tokens": num_tokens,
            "bytes_per_token": ratio(num_bytes, num_tokens),
        }
    return out


def describe_authors(table: pa.Table) -> dict[str, Any]:
    """For author, city and year: how many documents have one, how many distinct there are, and documents of each."""
    out = {}
    for field in CONTROL_FIELDS:
        counts = pc.value_counts(table.column(field).combine_chunks().drop_null()).to_pylist()
        by_value = {str(c["values"]): c["counts"] for c in counts}
        out[field] = {"documents": sum(by_value.values()), "distinct": len(by_value), "documents_by_value": by_value}
    return out


def ratio(a: int, b: int) -> float | None:
    """a / b to four places; None where b is 0."""
    return round(a / b, 4) if b else None


def read_stats(build: Build) -> bytes:
    """The stats.json of `build`, as its manifest vouches for it. Raises FolioError where it is another."""
    return read_vouched(build.folder / STATS, build.manifest["stats_sha256"])


def spell_stats(data: bytes) -> list[str]:
    """What stats.json holds, as lines for a person."""
    stats = json.loads(data)
    documents = ", ".join(f"{stats['documents'][key]:,} {key}" for key in ("read", "empty", "duplicates", "kept"))
    lines = [
        f"documents   {documents}",
        "cleaned     " + (", ".join(f"{rule} {count:,}" for rule, count in stats["clean"].items()) or "nothing"),
        f"{'':12}{'documents':>12}{'tokens':>16}{'bytes of text':>17}{'bytes/token':>13}",
    ]
    for name, entry in [*((split, stats["splits"][split]) for split in SPLITS), *stats["languages"].items()]:
        per_token = ratio(entry["text_bytes"], entry["tokens"]) or 0.0
        lines.append(f"{name:12}{entry['documents']:>12,}{entry['tokens']:>16,}{entry['text_bytes']:>17,}{per_token:>13.2f}")
    for split in SPLITS:
        lengths = stats["tokens_per_document"][split]
        lines.append(f"tokens per document of {split}: mean {lengths['mean']:,}, " + ", ".join(f"{q} {lengths[q]:,}" for q in QUANTILES))
    for field, entry in stats["authors"].items():
        if entry["distinct"]:
            most = sorted(entry["documents_by_value"].items(), key=lambda item: (-item[1], item[0]))[:5]
            named = ", ".join(f"{value} {count:,}" for value, count in most)
            lines.append(f"{field:12}{entry['distinct']:,} in {entry['documents']:,} documents; most often {named}")
    return lines
