"""Whether a build is, to the last bit, what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.shards.files import HASH_CHUNK_BYTES, canonical_json, readable_json, sha256_bytes, sha256_file
from preprocess.shards.format import MANIFEST, SPLITS, STATS, TOKENIZER_DIR, Build, build_id_of, token_dtype


def verify(build: Build) -> Iterator[str]:
    """Re-hash everything and yield one line for each thing that is wrong; nothing yielded means the build is whole."""
    m, folder = build.manifest, build.folder
    if (folder / MANIFEST).read_bytes() != readable_json(m):
        yield f"{MANIFEST} is not spelled as a builder spells it: it was edited"
    if m["checksum"] != sha256_bytes(canonical_json({k: v for k, v in m.items() if k != "checksum"})):
        yield f"{MANIFEST} does not match its own checksum"
    if m["build_id"] != build_id_of(m):
        yield f"{MANIFEST} does not match its own build_id"
    if m["dtype"] != token_dtype(m["vocab_size"]):
        yield f"dtype {m['dtype']} does not go with a vocabulary of {m['vocab_size']}"
    yield from _verify_hash(folder / STATS, m["stats_sha256"])
    for name, expected in sorted(m["tokenizer"]["files"].items()):
        yield from _verify_hash(folder / TOKENIZER_DIR / name, expected)
    for split in SPLITS:
        entries = m["splits"][split]["shards"]
        for key in ("tokens", "documents"):
            if m["splits"][split][key] != sum(e[key] for e in entries):
                yield f"{split}: {key} is not the sum over its shards"
        for entry in entries:
            yield from _verify_shard(build, entry)


def _verify_hash(path: Path, expected: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
    elif (got := sha256_file(path)) != expected:
        yield f"{path.name} has sha256 {got}, its manifest says {expected}"


def _verify_shard(build: Build, entry: dict[str, Any]) -> Iterator[str]:
    path = build.folder / entry["file"]
    for suffix, key in ((".bin", "sha256"), (".ends", "ends_sha256"), (".docs", "docs_sha256")):
        yield from _verify_hash(path.with_suffix(suffix), entry[key])
    shard = build.map_shard(entry)
    if len(shard.ends) and (
        int(shard.ends[-1]) != len(shard.tokens) or bool(np.any(np.diff(shard.ends.astype(np.int64)) < 0))
    ):
        yield f"{path.stem}.ends does not rise to {len(shard.tokens)}"
    max_id = max(
        (int(shard.tokens[i : i + HASH_CHUNK_BYTES].max()) for i in range(0, len(shard.tokens), HASH_CHUNK_BYTES)),
        default=-1,
    )
    if max_id != entry["max_id"]:
        yield f"{path.name} holds ids up to {max_id}, its manifest says {entry['max_id']}"
