"""Small builds whose tokens show where they were read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preprocess.shards.files import JsonObject, readable_json
from preprocess.shards.format import DOC_DTYPE, MANIFEST, Build, seal
from tests.conftest import write_split
from tests.helpers.runs import make_build

VOCAB_SIZE = 50_000


def make_docs(num_documents: int) -> np.ndarray:
    """Return document records with the positions 0, 1, 2, …"""
    docs = np.zeros(num_documents, DOC_DTYPE)
    docs["position"] = np.arange(num_documents)
    return docs


def make_numbered_build(folder: Path, lengths: list[int], *, shard_tokens: int, **fields: Any) -> Build:
    """Return a build whose training tokens are 0, 1, 2, …, in documents of `lengths`."""
    make_build(folder, vocab_size=VOCAB_SIZE)
    for path in folder.glob("train-*"):
        path.unlink()
    manifest = json.loads((folder / MANIFEST).read_bytes()) | fields
    ids, ends = np.arange(sum(lengths), dtype=np.uint16), np.cumsum(lengths)
    manifest["splits"]["train"] = write_split(
        folder, "train", ids, ends, np.zeros(len(lengths), DOC_DTYPE), vocab_size=VOCAB_SIZE, shard_tokens=shard_tokens
    )
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest)))
    return Build(folder)


def read_manifest_json(build: Build) -> JsonObject:
    """Return a build's manifest as the JSON object in its file."""
    return json.loads((build.folder / MANIFEST).read_bytes())


def edit_manifest(build: Build, **changes: object) -> None:
    """Overwrite keys of a build's manifest, and seal it again, as somebody who means harm would."""
    (build.folder / MANIFEST).write_bytes(readable_json(seal(read_manifest_json(build) | changes)))


def read_windows(loader: Any) -> list[list[int]]:
    """Return the inputs of all pairs in the batches of `loader`, sorted.

    Targets must be the next tokens.
    """
    windows = []
    for x, y in loader:
        assert x.dtype == y.dtype == torch.int64 and torch.equal(y, x + 1)
        windows += x.tolist()
    return sorted(windows)


class FakeWorker:
    """Replaces the result of torch's get_worker_info."""

    def __init__(self, worker: int, num_workers: int) -> None:
        self.id, self.num_workers = worker, num_workers
