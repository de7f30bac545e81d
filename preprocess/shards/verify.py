"""Check every byte of a build against its manifest.

Opening a build compares file sizes only. `verify` hashes every file. A hash shows only that a file
is the one that the builder wrote, so `verify` also checks the content: totals are sums over the
shards, document ends ascend to the number of tokens, and the largest id is the one in the manifest.
The cost is reading every file once, and the token files twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.shards.files import (
    HASH_CHUNK_BYTES,
    canonical_json,
    parse_json,
    readable_json,
    sha256_bytes,
    sha256_file,
)
from preprocess.shards.format import MANIFEST, STATS, TOKENIZER_DIR, Build, compute_build_id, token_dtype
from preprocess.shards.manifest import SPLITS, ShardEntry


def verify(build: Build) -> Iterator[str]:
    """Yield one line for each fault found in `build`. A build without faults yields no line."""
    yield from _verify_manifest(build)
    manifest = build.manifest
    yield from _verify_hash(build.folder / STATS, manifest.stats_sha256)
    for name, expected in sorted(manifest.tokenizer.files.items()):
        yield from _verify_hash(build.folder / TOKENIZER_DIR / name, expected)
    for split in SPLITS:
        entry = manifest.splits[split]
        if entry.tokens != sum(shard.tokens for shard in entry.shards):
            yield f"{split}: tokens is not the sum over its shards"
        if entry.documents != sum(shard.documents for shard in entry.shards):
            yield f"{split}: documents is not the sum over its shards"
        for shard in entry.shards:
            yield from _verify_shard(build, shard)


def _verify_manifest(build: Build) -> Iterator[str]:
    manifest, data = build.manifest, (build.folder / MANIFEST).read_bytes()
    stored = parse_json(data)  # with keys that no field of `manifest` has, if any
    if data != readable_json(stored):
        yield f"{MANIFEST} is not formatted as a builder formats it: it was edited"
    if manifest.checksum != sha256_bytes(canonical_json({k: v for k, v in stored.items() if k != "checksum"})):
        yield f"{MANIFEST} does not match its checksum"
    if manifest.build_id != compute_build_id(stored):
        yield f"{MANIFEST} does not match its build_id"
    if manifest.dtype != token_dtype(manifest.vocab_size):
        yield f"dtype {manifest.dtype} does not match a vocabulary of {manifest.vocab_size}"


def _verify_hash(path: Path, expected: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
    elif (found := sha256_file(path)) != expected:
        yield f"{path.name} has sha256 {found}, its manifest says {expected}"


def _verify_shard(build: Build, entry: ShardEntry) -> Iterator[str]:
    path = build.folder / entry.file
    for suffix, expected in ((".bin", entry.sha256), (".ends", entry.ends_sha256), (".docs", entry.docs_sha256)):
        yield from _verify_hash(path.with_suffix(suffix), expected)
    shard = build.map_shard(entry)
    if len(shard.ends) and (
        int(shard.ends[-1]) != len(shard.tokens) or bool(np.any(np.diff(shard.ends.astype(np.int64)) < 0))
    ):
        yield f"{path.stem}.ends does not ascend to {len(shard.tokens)}"
    chunks = (shard.tokens[i : i + HASH_CHUNK_BYTES] for i in range(0, len(shard.tokens), HASH_CHUNK_BYTES))
    max_id = max((int(chunk.max()) for chunk in chunks), default=-1)
    if max_id != entry.max_id:
        yield f"{path.name} holds ids up to {max_id}, its manifest says {entry.max_id}"
