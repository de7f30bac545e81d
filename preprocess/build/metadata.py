"""Writes the files of a build except the shards: tokenizer, statistics, build log, manifest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from preprocess.build.contamination import describe_contamination
from preprocess.build.duplicate_examples import describe_duplicates
from preprocess.build.filter_stats import describe_filters
from preprocess.build.plan import Plan
from preprocess.build.prepared_corpus import PreparedCorpus
from preprocess.build.repeated_lines import describe_repeated_lines
from preprocess.build.shard_layout import ShardLayout
from preprocess.build.stats import describe_build, describe_chats
from preprocess.shards import format as shard_format
from preprocess.shards.files import JsonObject, readable_json, sha256_bytes, sync_folder, write_flushed
from preprocess.shards.format import BUILD_LOG, MANIFEST, STATS, TOKENIZER_DIR
from preprocess.shards.manifest import ShardEntry
from preprocess.shards.manifest_file import FORMAT, VERSION
from preprocess.tokenizers import make_tokenizer_entry
from preprocess.tokenizers.interface import Tokenizer
from preprocess.versions import collect_versions


@dataclass(frozen=True)
class BuildContents:
    """A build without its metadata: what `write_metadata` describes."""

    name: str
    plan: Plan
    corpus: PreparedCorpus
    layout: ShardLayout
    shards: dict[str, list[ShardEntry]]  # of each split

    @property
    def vocab_size(self) -> int:
        """The number of ids, control tokens included."""
        return self.corpus.tokenizer.vocab_size + len(self.layout.control_ids)


def write_metadata(directory: Path, contents: BuildContents, build_log: JsonObject) -> None:
    """Write the files to `directory`, manifest.json last: a build with a manifest is complete.

    The entries of `directory` are flushed to the disk when it gets its final name.
    """
    write_tokenizer(directory, contents.corpus.tokenizer)
    sync_folder(directory / TOKENIZER_DIR)
    described = describe_build(contents.corpus, contents.layout.counts, contents.vocab_size)
    corpus = contents.corpus
    described |= describe_repeated_lines(corpus.work_dir, corpus.recipe, corpus.receipts)
    described |= describe_contamination(contents.corpus.work_dir, contents.corpus.recipe, len(contents.corpus.receipts))
    described |= describe_filters(contents.corpus, contents.plan.input_files)
    described |= describe_duplicates(contents.corpus, contents.plan.input_files)
    stats = readable_json(described | describe_chats(contents.plan.recipe, contents.shards))
    write_flushed(directory / STATS, stats)
    write_flushed(directory / BUILD_LOG, readable_json(build_log))
    manifest = make_manifest(contents, stats_sha256=sha256_bytes(stats))
    write_flushed(directory / MANIFEST, readable_json(manifest))


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Write the files of `tokenizer` to `directory`, so that `load_tokenizer` finds them there."""
    (directory / TOKENIZER_DIR).mkdir(parents=True, exist_ok=True)
    for file_name, data in tokenizer.files.items():
        write_flushed(directory / TOKENIZER_DIR / file_name, data)


def make_manifest(contents: BuildContents, *, stats_sha256: str) -> JsonObject:
    """Return the content of manifest.json. docs/shard_format.md describes the keys."""
    tokenizer, layout = contents.corpus.tokenizer, contents.layout
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "name": contents.name,
        "dtype": shard_format.token_dtype(contents.vocab_size),
        "vocab_size": contents.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eot_id": tokenizer.eot_id,
        "pad_id": tokenizer.pad_id,
        "unk_id": tokenizer.unk_id,
        "special_tokens": {**tokenizer.special_tokens, **layout.control_ids},
        "tokenizer": dataclasses.asdict(make_tokenizer_entry(tokenizer)),
        "splits": {
            split: {**layout.counts.splits[split], "shards": [entry.as_dict() for entry in entries]}
            for split, entries in contents.shards.items()
        },
        "recipe": contents.plan.recipe.resolved(),
        "sources": contents.plan.source_entries(),
        "languages": {str(number): tag for tag, number in layout.languages.items()},
        "stats_sha256": stats_sha256,
        "made_with": collect_versions(tokenizer.kind, contents.plan.formats, contents.plan.recipe.filters),
    }
    return shard_format.seal(fields)
