"""stats.json: the counts of a build, which are deterministic. build_log.json has times and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from preprocess.build.contamination import format_contamination
from preprocess.build.count_leaks import LEAK_ADVICE, describe_leaks
from preprocess.build.document_counts import DocumentCounts, ValueCounts
from preprocess.build.filter_stats import format_filter_counts
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.repeated_lines import format_repeated_lines
from preprocess.errors import FolioError, format_quantity, shorten
from preprocess.inputs.input_files import InputFile
from preprocess.readers.record_blocks import is_grouped_by_position
from preprocess.readers.records import format_counts
from preprocess.recipes.schema import CLEANING_RULES, Recipe
from preprocess.shards.files import JsonObject, parse_json
from preprocess.shards.format import SPLITS, STATS, Build, read_verified
from preprocess.shards.manifest import ShardEntry
from preprocess.stages.decontaminate import CONTAMINATED
from preprocess.tokenizers.lost_characters import name_most_frequent

# The reasons for which a document is dropped, in the order in which they are checked.
DROP_REASONS = (
    "malformed", "oversized", "invalid_utf8", "filtered", "null_text", "too_short", "too_long", "empty", "held_out",
    "duplicates", "over_max_documents",
)  # fmt: skip
OTHER_RECORDS = "other_records"  # of WARC files, such as requests and images; left out of stats.json if there are none
BY_FILTERS = "by_filters"  # left out of stats.json if the recipe has no filters
NEAR_DUPLICATES = "near_duplicates"  # left out of stats.json if they were not looked for
MAX_LISTED_VALUES = 10_000  # authors, cities, years or languages in stats.json; all are counted
MAX_LISTED_CHARACTERS = 100  # that the tokenizer loses
MAX_PRINTED_VALUES = 5  # authors, cities or years
MAX_PRINTED_LANGUAGES = 50
LEAKS_KEY = "equal_texts_on_both_sides"  # the number of distinct texts that are in both splits
GROUPED_KEY = "near_duplicates_grouped"  # documents that are on the side of an earlier one that is nearly equal
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99, "max": 1.0}


def describe_lengths(lengths: Counter[int]) -> JsonObject:
    """Return the mean, quantiles and histogram of document lengths.

    `lengths` maps a number of tokens to a number of documents; it must not be empty. Quantiles are
    as in `numpy.quantile` with `method="nearest"`. The upper edges of the histogram's bins are
    powers of two, inclusive.
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


def _describe_languages(languages: ValueCounts) -> JsonObject:
    return {
        tag: {**totals, "bytes_per_token": compute_ratio(totals["text_bytes"], totals["tokens"])}
        for tag, totals in languages.most_frequent(MAX_LISTED_VALUES).items()
    }


def _describe_authors(authors: dict[str, ValueCounts], num_documents: int) -> JsonObject:
    """Return the number of documents with an author, city and year, and the most frequent values."""
    return {
        name: {
            "documents": counts.num_documents(),
            "coverage": compute_ratio(counts.num_documents(), num_documents),
            "distinct": len(counts),
            "documents_by_value": {
                value: totals["documents"] for value, totals in counts.most_frequent(MAX_LISTED_VALUES).items()
            },
        }
        for name, counts in authors.items()
    }


def _most_frequent(counts: Mapping[str, int], max_values: int) -> list[tuple[str, int]]:
    """Return the most frequent values with their counts. Equal counts are sorted by value."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:max_values]


def describe_build(corpus: PreparedCorpus, counts: DocumentCounts, vocab_size: int) -> JsonObject:
    """Return the content of stats.json. `vocab_size` includes the control tokens."""
    recipe, tokenizer = corpus.recipe, corpus.tokenizer
    dropped = sum_counts(receipt.dropped for receipt in corpus.receipts)
    dropped.update(corpus.assignment.dropped)
    # These documents are counted with the dropped ones, but they are in the build in a repaired form.
    mended = {name: dropped.pop(name, 0) for name in ("cut", "unreadable_year")}
    if num_wrong := dropped.pop("wrong_quotes", 0):  # left out if there are none, as `leaks`
        mended["wrong_quotes"] = num_wrong
    if recipe.invalid_utf8 == "replace":
        mended["invalid_utf8"] = dropped.pop("invalid_utf8", 0)
    cleaned = sum_counts(receipt.cleaned for receipt in corpus.receipts)
    # Leave the key out if there are none: other builds keep the build_id that earlier versions gave them.
    leaks = {LEAKS_KEY: corpus.assignment.num_leaks} if corpus.assignment.num_leaks else {}
    num_near = corpus.assignment.num_near_duplicates
    near = {} if num_near is None else {GROUPED_KEY: num_near}
    lost = corpus.loss.lost
    lengths = {split: describe_lengths(of_split) for split, of_split in counts.lengths.items() if of_split}
    num_kept = counts.total("documents")
    num_tokens, text_bytes = counts.total("tokens"), counts.total("text_bytes")
    stats: JsonObject = {
        "documents": {
            "read": num_kept + dropped.total(),
            "kept": num_kept,
            **{reason: dropped[reason] for reason in DROP_REASONS},
            **{reason: dropped[reason] for reason in (OTHER_RECORDS,) if dropped[reason]},
            **({CONTAMINATED: dropped[CONTAMINATED]} if recipe.decontaminate else {}),
            **({BY_FILTERS: dropped[BY_FILTERS]} if recipe.filters else {}),
            **({NEAR_DUPLICATES: dropped[NEAR_DUPLICATES]} if recipe.near_dedup == "drop" else {}),
        },
        "clean": {rule: cleaned[rule] for rule in CLEANING_RULES if rule in recipe.clean},
        "mended": mended,
        "split": {"mode": recipe.split, "val_fraction": recipe.val_fraction, **leaks, **near},
        "splits": counts.splits,
        "tokens": num_tokens,
        "text_bytes": text_bytes,
        "bytes_per_token": compute_ratio(text_bytes, num_tokens),
        "tokens_per_document": lengths,
        "languages": _describe_languages(counts.languages),
        "authors": _describe_authors(counts.authors, num_kept),
        "vocabulary": {
            "tokenizer": tokenizer.vocab_size,
            "control": vocab_size - tokenizer.vocab_size,
            "vocab_size": vocab_size,
        },
    }
    if lost:
        stats["lost_characters"] = {
            "characters": lost.total(),
            "of": corpus.loss.num_characters,
            "by_character": dict(_most_frequent(lost, MAX_LISTED_CHARACTERS)),
        }
    if len(counts.languages) > MAX_LISTED_VALUES:
        stats["languages_not_listed"] = len(counts.languages) - MAX_LISTED_VALUES
    if tokenizer.kind == "sentencepiece":
        # SentencePiece represents a space by U+2581, so a U+2581 in the text is decoded as a space.
        stats["documents_with_u2581"] = counts.num_u2581
    return stats


def describe_chats(recipe: Recipe, shards: Mapping[str, Iterable[ShardEntry]]) -> JsonObject:
    """Return what stats.json says about chats: nothing if there are none. `shards`: of each split."""
    if recipe.chat_columns is None:
        return {}
    loss_tokens = {split: sum(entry.loss_tokens or 0 for entry in entries) for split, entries in shards.items()}
    return {"chats": {"template": recipe.chat_template, "loss_tokens": loss_tokens}}


def sum_counts(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Return the sum of the counts of all partitions, by key."""
    total: Counter[str] = Counter()
    for of_partition in counts:
        total.update(of_partition)
    return total


def list_warnings(
    corpus: PreparedCorpus, input_files: Sequence[InputFile], num_u2581: int, leak_advice: str = LEAK_ADVICE
) -> list[str]:
    """Return the warnings about a build: characters that are lost, files that do not match, texts in both splits.

    `num_u2581`: the number of documents that contain U+2581. `leak_advice`: what to do about texts in both splits.
    """
    lines = []
    if line := corpus.loss.describe():
        lines.append(line)
    if num_u2581 and corpus.tokenizer.kind == "sentencepiece":
        contain = "document contains" if num_u2581 == 1 else "documents contain"
        lines.append(
            f"{num_u2581:,} {contain} the character U+2581 (\u2581), SentencePiece's sign for a space, which is "
            "decoded as a space; replace it in the input"
        )
    if num_leaks := corpus.assignment.num_leaks:
        lines.append(describe_leaks(num_leaks, leak_advice))
    if is_grouped_by_position(corpus.recipe):
        lines += _compare_lengths(corpus, input_files)
    if corpus.recipe.document == "separator" and input_files:
        lines += _look_for_separator(corpus, input_files)
    return lines


def _look_for_separator(corpus: PreparedCorpus, input_files: Sequence[InputFile]) -> list[str]:
    """Return a warning if the separator divides no file, because it is misspelled or the lines end with CR and LF."""
    num_documents, separator = _count_documents(corpus), corpus.recipe.separator
    num_cut = sum(receipt.dropped.get("cut", 0) for receipt in corpus.receipts)  # parts of long documents
    num_with_text = sum(count > 0 for count in num_documents.values())
    if any(file.format != "text" for file in input_files) or num_documents.total() - num_cut > num_with_text:
        return []
    num_files = len(input_files)
    files = "the file, which is one document" if num_files == 1 else f"any of the {num_files:,} files"
    needs_cr = "\n" in separator and "\r" not in separator
    advice = "; if their lines end with CR LF, write \\r\\n for each line feed" if needs_cr else ""
    return [f"the separator {separator!r:.80} does not divide {files}; compare it with the text{advice}"]


def _count_documents(corpus: PreparedCorpus) -> Counter[int]:
    """Return the number of documents of each input file, including those that were dropped, by file number."""
    num_documents: Counter[int] = Counter()
    for receipt in corpus.receipts:
        for file_number, num_positions in receipt.num_positions:
            num_documents[file_number] += num_positions
    return num_documents


def _compare_lengths(corpus: PreparedCorpus, input_files: Sequence[InputFile]) -> list[str]:
    """Return a warning if files whose documents are grouped by position have different numbers of documents."""
    by_number = _count_documents(corpus).most_common()
    (longest, most), (shortest, fewest) = by_number[0], by_number[-1]
    if most == fewest:
        return []
    name, other = shorten(input_files[longest].name), shorten(input_files[shortest].name)
    return [
        f"{name} has {format_quantity(most, 'document')}, but {other} has {fewest:,}, so documents at the same "
        "position may not belong together; compare the files"
    ]


def compute_ratio(numerator: int, denominator: int) -> float | None:
    """Return the ratio, rounded to four decimal places, or None if the denominator is 0."""
    return round(numerator / denominator, 4) if denominator else None


def read_stats(build: Build) -> bytes:
    """Return the bytes of stats.json. Raises FolioError if the manifest has another hash."""
    return read_verified(build.folder / STATS, build.manifest.stats_sha256)


def format_stats(data: bytes) -> list[str]:
    """Return the lines that `preprocess stats` prints for `data`, the content of stats.json.

    Raises FolioError if it is malformed.
    """
    with explain_malformed():
        return _format(parse_json(data))


@contextmanager
def explain_malformed() -> Iterator[None]:
    """Raise FolioError, which says that stats.json is malformed, for an error in the block that reads it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        problem = shorten(f"{type(e).__name__}: {e}")
        raise FolioError(f"{STATS} is malformed ({problem}); copy the build again or rebuild it") from e


def _format(stats: JsonObject) -> list[str]:
    always = ("read", "empty", "duplicates", "kept")
    found = stats["documents"]
    order = ("read", *DROP_REASONS, BY_FILTERS, CONTAMINATED, NEAR_DUPLICATES, OTHER_RECORDS, "kept")
    documents = {key: found[key] for key in order if found.get(key) or key in always}
    cleaned = [f"{rule} {count:,}" for rule, count in stats["clean"].items()]
    repaired = [f"{name} {count:,}" for name, count in stats["mended"].items() if count]
    lines = [
        "documents   " + ", ".join(format_counts(documents)),
        "cleaned     " + (", ".join(cleaned) or "nothing"),
        "repaired    " + (", ".join(repaired) or "no documents"),
        f"{'':12}{'documents':>12}{'tokens':>16}{'bytes of text':>17}{'bytes/token':>13}",
    ]
    lines[1:1] = format_repeated_lines(stats.get("repeated_lines"))
    lines[1:1] = format_contamination(stats.get("decontamination"))
    lines[1:1] = format_filter_counts(stats.get("filters", []))
    languages = stats["languages"]
    frequent = _most_frequent({tag: totals["documents"] for tag, totals in languages.items()}, MAX_PRINTED_LANGUAGES)
    shown = sorted(tag for tag, _ in frequent)
    for name, totals in [
        *((split, stats["splits"][split]) for split in SPLITS), *((tag, languages[tag]) for tag in shown)
    ]:  # fmt: skip
        bytes_per_token = compute_ratio(totals["text_bytes"], totals["tokens"]) or 0.0
        lines.append(
            f"{name:12}{totals['documents']:>12,}{totals['tokens']:>16,}{totals['text_bytes']:>17,}"
            f"{bytes_per_token:>13.2f}"
        )
    if num_more := len(languages) - len(shown) + stats.get("languages_not_listed", 0):
        lines.append(f"and {num_more:,} more languages, each with fewer documents")
    if chats := stats.get("chats"):
        counts = ", ".join(f"{chats['loss_tokens'][split]:,} of {split}" for split in SPLITS)
        lines.append(f"tokens in the loss mask, with the chat template {shorten(chats['template'])}: {counts}")
    if lost := stats.get("lost_characters"):
        lines.append(
            f"the tokenizer lost {lost['characters']:,} of {lost['of']:,} characters, most often "
            f"{name_most_frequent(lost['by_character'])}"
        )
    if num_leaks := stats["split"].get(LEAKS_KEY):
        lines.append(f"{num_leaks:,} texts are in both train and val")
    if num_grouped := stats["split"].get(GROUPED_KEY):
        lines.append(f"{num_grouped:,} documents are nearly equal to an earlier one and on the same side of the split")
    for split, lengths in stats["tokens_per_document"].items():
        quantiles = ", ".join(f"{name} {lengths[name]:,}" for name in QUANTILES)
        lines.append(f"tokens per document of {split}: mean {lengths['mean']:,}, {quantiles}")
    for name, entry in stats["authors"].items():
        if entry["distinct"]:
            frequent = _most_frequent(entry["documents_by_value"], MAX_PRINTED_VALUES)
            values = ", ".join(f"{value} {count:,}" for value, count in frequent)
            num_documents = format_quantity(entry["documents"], "document")
            lines.append(f"{name:12}{entry['distinct']:,} in {num_documents}; most often {values}")
    return lines
