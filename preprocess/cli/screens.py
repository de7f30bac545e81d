"""What `build`, `list`, `show`, `stats` and `diff` show on a terminal: tables with bars instead of plain lines.

The numbers are those of the plain lines and of --json; only how they are arranged differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from preprocess.errors import shorten
from preprocess.terminal import STRONG, Grid, Line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from preprocess.build.diff import Difference
    from preprocess.shards.files import JsonObject

MAX_VALUES = 10  # languages, authors, cities or years
QUANTILES = ("mean", "min", "p05", "p25", "median", "p75", "p95", "p99", "max")
Blocks = list[Grid | Line]


def show_build(facts: JsonObject, headline: str) -> Blocks:
    """Return the main facts about a build, which `describe` returned."""
    rows = [
        ("build", facts["build_id"]),
        ("folder", facts["folder"]),
        ("tokenizer", facts["tokenizer"]),
        ("vocabulary", f"{facts['vocab_size']:,} ids, {facts['control_tokens']:,} of them control tokens"),
        ("stored as", facts["dtype"]),
    ]
    splits = facts["splits"]
    keys = ("documents", "tokens", "text_bytes", "shards")
    table = Grid(
        header=("split", "documents", "tokens", "bytes of text", "shards"),
        rows=[(split, *(f"{of_split[key]:,}" for key in keys)) for split, of_split in splits.items()],
        bars=[of_split["tokens"] for of_split in splits.values()],
    )
    return [Line(text=headline, style=STRONG), Grid(header=("", ""), rows=rows, num_text_columns=2), table]


def show_new_build(facts: JsonObject, headline: str, data: bytes, changes: Sequence[str]) -> Blocks:
    """Return what `preprocess build` shows at its end. `data`: the content of stats.json. `changes`: further lines."""
    from preprocess.build.stats import explain_malformed
    from preprocess.shards.files import parse_json

    with explain_malformed():
        stats = parse_json(data)
        funnel, filters = show_funnel(stats["documents"]), show_filters(stats.get("filters", []))
    return [*show_build(facts, headline), funnel, *filters, *(Line(text=line) for line in changes)]


def show_funnel(documents: JsonObject) -> Grid:
    """Return the documents that were read, dropped for each reason, and kept. `documents`: of stats.json."""
    reasons = [key for key in documents if key not in ("read", "kept") and documents[key]]
    keys = ["read", *reasons, "kept"]
    total = max(documents["read"], 1)
    return Grid(
        header=("documents", "number", "share"),
        rows=[(key, f"{documents[key]:,}", f"{documents[key] / total:.1%}") for key in keys],
        bars=[documents[key] for key in keys],
    )


def show_filters(filters: Sequence[JsonObject]) -> Blocks:
    """Return what each filter dropped. `filters`: of stats.json."""
    grids: Blocks = []
    for entry in filters:
        dropped = {reason: count for reason, count in entry["dropped"].items() if count}
        total = max(entry["documents"], 1)
        rows = [(shorten(reason), f"{count:,}", f"{count / total:.1%}") for reason, count in dropped.items()]
        title = f"filter {shorten(entry['name'])}: read {entry['documents']:,}, dropped {sum(dropped.values()):,}"
        if rows:
            grids.append(
                Grid(header=("reason", "dropped", "share"), rows=rows, bars=list(dropped.values()), title=title)
            )
        else:
            grids.append(Line(text=title))
    return grids


def show_stats(data: bytes) -> Blocks:
    """Return the statistics of a build. `data`: the content of stats.json. Raises FolioError if it is malformed."""
    from preprocess.build.stats import explain_malformed
    from preprocess.shards.files import parse_json

    with explain_malformed():
        return _show_stats(parse_json(data))


def _show_stats(stats: JsonObject) -> Blocks:
    blocks: Blocks = [show_funnel(stats["documents"]), *show_filters(stats.get("filters", []))]
    changes = [(f"cleaned by {rule}", count) for rule, count in stats["clean"].items()]
    changes += [(f"repaired: {name}", count) for name, count in stats["mended"].items()]
    rows = [(name, f"{count:,}") for name, count in changes if count]
    blocks.append(Grid(header=("documents changed", "number"), rows=rows))
    blocks += [_show_totals("split", stats["splits"]), _show_totals("language", stats["languages"])]
    for split, lengths in stats["tokens_per_document"].items():
        rows = [(f"{part['up_to']:,}", f"{part['documents']:,}") for part in lengths["histogram"]]
        title = f"Length of the documents of {split}"
        bars = [part["documents"] for part in lengths["histogram"]]
        blocks.append(Grid(header=("tokens, at most", "documents"), rows=rows, bars=bars, title=title))
    of_splits = [
        (split, *(f"{lengths[name]:,}" for name in QUANTILES))
        for split, lengths in stats["tokens_per_document"].items()
    ]
    blocks.append(Grid(header=("tokens per document", *QUANTILES), rows=of_splits))
    for name, entry in stats["authors"].items():
        values = list(entry["documents_by_value"].items())[:MAX_VALUES]
        rows = [(shorten(value), f"{count:,}") for value, count in values]
        title = f"{entry['distinct']:,} different, in {entry['documents']:,} documents"
        bars = [count for _, count in values]
        blocks.append(Grid(header=(name, "documents"), rows=rows, bars=bars, title=title if rows else ""))
    return blocks


def _show_totals(name: str, totals: JsonObject) -> Grid:
    entries = sorted(totals.items(), key=lambda item: -item[1]["documents"])[:MAX_VALUES]
    rows = []
    for key, entry in entries:
        ratio = entry["text_bytes"] / entry["tokens"] if entry["tokens"] else 0.0
        counts = (entry["documents"], entry["tokens"], entry["text_bytes"])
        rows.append((shorten(key), *(f"{count:,}" for count in counts), f"{ratio:.2f}"))
    header = (name, "documents", "tokens", "bytes of text", "bytes/token")
    return Grid(header=header, rows=rows, bars=[entry["tokens"] for _, entry in entries])


def show_difference(found: Difference, settings: Sequence[tuple[str, str, str]], names: tuple[str, str]) -> Blocks:
    """Return the differences between two builds. `settings`: key, and the values in both builds."""
    kinds = (
        (f"only in {names[0]}", found.only_in_a),
        (f"only in {names[1]}", found.only_in_b),
        ("moved to another split", found.in_other_split),
    )
    rows = [
        (label, ", ".join(f"{place.split} {place.document:,}" for place in texts.examples), f"{texts.num_texts:,}")
        for label, texts in kinds
        if texts.num_texts
    ]
    return [
        Grid(header=("texts", "such as", "number"), rows=rows, num_text_columns=2),
        Grid(header=("setting", *names), rows=list(settings), num_text_columns=3),
    ]
