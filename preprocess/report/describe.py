"""What the page shows of a build: tables of names and numbers, made from its manifest, stats.json and tokens.

The result has only text and numbers. How they look is decided in build.html, and in the folder pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preprocess.build.stats import explain_malformed, read_stats
from preprocess.errors import printable
from preprocess.pages.content import Cell, Page, Table, clean_text
from preprocess.report.count_tokens import compute_divergence, count_tokens, share_of_new_tokens
from preprocess.shards.files import JsonObject, canonical_json, parse_json
from preprocess.shards.format import SPLITS, Build
from preprocess.tokenizers import load_tokenizer

MAX_ROWS = 200  # of a table
MAX_EXAMPLES = 3  # of a filter's rule
MIN_VAL_TOKENS = 10_000  # below, splits differ by chance
MAX_DIVERGENCE = 0.1  # bits, above which the splits are called different
MAX_NEW_TOKENS = 0.01  # of the validation tokens


@dataclass(frozen=True, kw_only=True)
class Example:
    """A document that a filter dropped."""

    rule: str
    place: str
    value: str
    text: str


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """A document that was dropped or grouped because of an earlier one. Equal documents have one text."""

    reason: str
    kept: str  # file and number
    kept_text: str
    other: str
    other_text: str


@dataclass(frozen=True, kw_only=True)
class BuildPage(Page):
    """The page of a build."""

    examples: dict[str, list[Example]] = field(default_factory=dict)  # by filter
    duplicates: list[DuplicatePair] = field(default_factory=list)


def describe_page(build: Build) -> BuildPage:
    """Return what the page shows of `build`. All tokens are read.

    Raises FolioError if stats.json is malformed or the build is damaged.
    """
    with build.reading():
        stats = read_stats(build)
        counts = {split: count_tokens(build, split) for split in SPLITS}
        texts = name_tokens(build)
    with explain_malformed():
        return _describe(build, parse_json(stats), counts, texts)


def _describe(build: Build, stats: JsonObject, counts: dict[str, np.ndarray], texts: list[str]) -> BuildPage:
    tables = [
        _describe_funnel(stats["documents"]),
        *_describe_filters(stats.get("filters", [])),
        _describe_splits(stats["splits"]),
        *_describe_lengths(stats["tokens_per_document"]),
        *_describe_values(stats),
        *_describe_tokens(counts, texts),
        _describe_shards(build),
        _describe_mapping("recipe", "Recipe", ("setting", "value"), build.manifest.recipe),
        _describe_sources(build),
    ]
    return BuildPage(
        title=build.name,
        facts=_list_facts(build, stats, counts),
        warnings=_list_warnings(stats, counts),
        tables=[table for table in tables if table.rows],
        examples=_list_examples(stats.get("filters", [])),
        duplicates=_list_duplicates(stats.get("duplicate_examples", {})),
    )


def _list_facts(build: Build, stats: JsonObject, counts: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    num_used = int(np.count_nonzero(sum(counts.values())))
    made_with = ", ".join(f"{name} {version}" for name, version in build.manifest.made_with.items())
    facts = [
        ("build_id", build.build_id),
        ("tokenizer", f"{build.manifest.tokenizer.kind}, {build.vocab_size:,} ids, of which {num_used:,} occur"),
        ("documents", f"{stats['documents']['kept']:,} kept of {stats['documents']['read']:,} read"),
        ("tokens", f"{stats['tokens']:,}, {stats['bytes_per_token']:.2f} bytes of text per token"),
        ("made with", made_with),
    ]
    if counts["train"].any() and counts["val"].any():
        divergence = compute_divergence(counts["train"], counts["val"])
        facts.append(("train and val", f"Jensen-Shannon divergence of their tokens: {divergence:.4f} bits (0: equal)"))
    return [(name, clean_text(text)) for name, text in facts]


def _list_warnings(stats: JsonObject, counts: dict[str, np.ndarray]) -> list[str]:
    """Return what somebody who trains on the build should know."""
    warnings = []
    train, val = counts["train"], counts["val"]
    if not val.any():
        warnings.append("There are no validation documents, so overfitting cannot be seen.")
    elif val.sum() >= MIN_VAL_TOKENS and train.any():
        if (divergence := compute_divergence(train, val)) > MAX_DIVERGENCE:
            warnings.append(
                f"The validation documents differ from the training documents (divergence {divergence:.2f} bits). "
                "With a contiguous or given split this may be intended."
            )
        if (share := share_of_new_tokens(train, val)) > MAX_NEW_TOKENS:
            warnings.append(f"{share:.1%} of the validation tokens do not occur in the training documents.")
    if num_leaks := stats["split"].get("equal_texts_on_both_sides"):
        warnings.append(f"{num_leaks:,} texts are in both splits. `preprocess verify NAME --leaks` lists examples.")
    if lost := stats.get("lost_characters"):
        warnings.append(f"The tokenizer loses {lost['characters']:,} of {lost['of']:,} characters.")
    return warnings


def _describe_funnel(documents: JsonObject) -> Table:
    reasons = [(key, int(documents[key])) for key in documents if key not in ("read", "kept") and documents[key]]
    rows = [("read", int(documents["read"])), *reasons, ("kept", int(documents["kept"]))]
    total = max(int(documents["read"]), 1)
    return Table(
        id="funnel",
        title="From documents read to documents kept",
        header=("documents", "number", "share"),
        rows=[(name, number, number / total) for name, number in rows],
        bars=(1,),
    )


def _describe_filters(filters: list[Any]) -> list[Table]:
    return [
        Table(
            id=f"filter-{number}",
            title=f"Filter {entry['name']}",
            header=("reason", "dropped", "share"),
            rows=[
                (reason, int(count), count / max(int(entry["documents"]), 1))
                for reason, count in entry["dropped"].items()
                if count
            ],
            bars=(1,),
            note=f"of {entry['documents']:,} documents that reached it",
        )
        for number, entry in enumerate(filters)
    ]


def _list_examples(filters: list[Any]) -> dict[str, list[Example]]:
    examples = {
        str(entry["name"]): [
            Example(
                rule=clean_text(rule),
                place=clean_text(f"document {example['document']} of {example['file']}"),
                value="" if example.get("value") is None else f"{example['value']:.4g}",
                text=clean_text(example["text"]),
            )
            for rule, of_rule in entry.get("examples", {}).items()
            for example in of_rule[:MAX_EXAMPLES]
        ]
        for entry in filters
    }
    return {name: of_filter for name, of_filter in examples.items() if of_filter}


def _list_duplicates(examples: JsonObject) -> list[DuplicatePair]:
    def name(place: JsonObject) -> str:
        return clean_text(f"document {place['document']} of {place['file']}")

    names = {"duplicates": "equal", "near_duplicates": "nearly equal"}
    return [
        DuplicatePair(
            reason=names[reason],
            kept=name(pair["kept"]),
            kept_text=printable(pair["kept"]["text"]),
            other=name(pair["dropped"]),
            other_text=printable(pair["dropped"].get("text", "")),
        )
        for reason, pairs in examples.items()
        for pair in pairs
    ]


def _describe_splits(splits: JsonObject) -> Table:
    keys = ("documents", "tokens", "text_bytes")
    return Table(
        id="splits",
        title="Splits",
        header=("split", "documents", "tokens", "bytes of text"),
        rows=[(split, *(int(of_split[key]) for key in keys)) for split, of_split in splits.items()],
        bars=(2,),
    )


def _describe_lengths(lengths: JsonObject) -> list[Table]:
    quantiles = ("min", "p05", "p25", "median", "p75", "p95", "p99", "max")
    histograms = [
        Table(
            id=f"lengths-{split}",
            title=f"Length of the documents of {split}",
            header=("tokens, at most", "documents"),
            rows=[(int(part["up_to"]), int(part["documents"])) for part in of_split["histogram"]],
            bars=(1,),
            note="each row counts the documents that are longer than the row before says",
        )
        for split, of_split in lengths.items()
    ]
    rows: list[tuple[Cell, ...]] = [
        (split, float(of_split["mean"]), *(int(of_split[q]) for q in quantiles)) for split, of_split in lengths.items()
    ]
    table = Table(id="quantiles", title="Tokens per document", header=("split", "mean", *quantiles), rows=rows)
    return [table, *histograms]


def _describe_values(stats: JsonObject) -> list[Table]:
    languages = [
        (clean_text(tag), int(totals["documents"]), int(totals["tokens"]), float(totals["bytes_per_token"]))
        for tag, totals in stats["languages"].items()
    ]
    header = ("language", "documents", "tokens", "bytes per token")
    tables = [Table(id="languages", title="Languages", header=header, rows=languages[:MAX_ROWS], bars=(1,))]
    for name, of_name in stats["authors"].items():
        values = [(clean_text(value), int(number)) for value, number in of_name["documents_by_value"].items()]
        note = f"{of_name['distinct']:,} in {of_name['documents']:,} documents ({of_name['coverage']:.0%})"
        title = {"author": "Authors", "city": "Cities", "year": "Years"}.get(name, clean_text(name))
        tables.append(
            Table(
                id=clean_text(name),
                title=title,
                header=(name, "documents"),
                rows=values[:MAX_ROWS],
                bars=(1,),
                note=note,
            )
        )
    return tables


def _describe_tokens(counts: dict[str, np.ndarray], texts: list[str]) -> list[Table]:
    train, val = counts["train"], counts["val"]
    total = train + val
    order = np.argsort(-total, kind="stable")[:MAX_ROWS]
    rows = [(int(i), texts[i], int(train[i]), int(val[i])) for i in order.tolist() if total[i]]
    unused = np.flatnonzero(total == 0)
    unused_rows = [(int(i), texts[i]) for i in unused[:MAX_ROWS].tolist()]
    note = f"the first of {len(unused):,}" if len(unused) > MAX_ROWS else ""
    header = ("id", "token", "in train", "in val")
    return [
        Table(id="tokens", title="Most frequent tokens", header=header, rows=rows, bars=(2,)),
        Table(id="unused", title="Tokens that never occur", header=("id", "token"), rows=unused_rows, note=note),
    ]


def name_tokens(build: Build) -> list[str]:
    """Return the text of each id: the name of a control token, or the bytes of a token, decoded and escaped."""
    names = {token_id: name for name, token_id in build.manifest.special_tokens.items()}
    alphabet = load_tokenizer(build.folder, build.manifest).id_to_bytes
    data = [alphabet[i] if i < len(alphabet) else b"" for i in range(build.vocab_size)]
    return [clean_text(names.get(i) or token.decode("utf-8", "backslashreplace")) for i, token in enumerate(data)]


def _describe_shards(build: Build) -> Table:
    rows = [
        (shard.file, shard.documents, shard.tokens, shard.bytes, shard.sha256)
        for split in SPLITS
        for shard in build.manifest.splits[split].shards
    ]
    note = f"the first of {len(rows):,}" if len(rows) > MAX_ROWS else ""
    header = ("file", "documents", "tokens", "bytes", "SHA-256")
    return Table(id="shards", title="Shards", header=header, rows=rows[:MAX_ROWS], bars=(2,), note=note)


def _describe_mapping(table_id: str, title: str, header: tuple[str, str], mapping: JsonObject) -> Table:
    rows = [(clean_text(key), clean_text(canonical_json(value).decode())) for key, value in mapping.items()]
    return Table(id=table_id, title=title, header=header, rows=rows)


def _describe_sources(build: Build) -> Table:
    sources = build.manifest.sources
    rows = [
        (clean_text(source["name"]), int(source["bytes"]), clean_text(source["sha256"]))
        for source in sources[:MAX_ROWS]
    ]
    note = f"the first of {len(sources):,}" if len(sources) > MAX_ROWS else ""
    return Table(
        id="sources",
        title="Input files",
        header=("file", "bytes", "SHA-256"),
        rows=rows,
        bars=(1,),
        note=note,
    )
