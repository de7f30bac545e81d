"""Manifests without a build, for functions that read only a few of their fields."""

from __future__ import annotations

from typing import Any

from preprocess.shards.manifest import SPLITS, Manifest, SplitEntry, TokenizerEntry

EMPTY_SPLIT = SplitEntry(tokens=0, documents=0, text_bytes=0, shards=())


def make_manifest(**fields: Any) -> Manifest:
    """Return the manifest of an empty build; `fields` replace its fields."""
    return Manifest(
        **{
            "format": "folio-shards", "version": 1, "name": "empty", "dtype": "<u2", "vocab_size": 256,
            "bos_id": None, "eot_id": None, "pad_id": None, "unk_id": None, "special_tokens": {},
            "tokenizer": TokenizerEntry(kind="byte", files={}, settings={}),
            "splits": dict.fromkeys(SPLITS, EMPTY_SPLIT), "recipe": {}, "sources": [], "languages": {},
            "stats_sha256": "", "build_id": "", "made_with": {}, "checksum": "",
        } | fields
    )  # fmt: skip
