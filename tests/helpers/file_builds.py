"""Builds of small input files with the byte tokenizer, to compare documents with the input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings

from preprocess.build.build import build
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.tokenizers import load_tokenizer

QUIET = Progress(quiet=True)
# Every example is a build, and may use fixtures of the test function.
FEW_EXAMPLES = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = [f"word{i}" for i in range(40)]


def build_files(
    folder: Path, *paths: Path | str, corpus: str | None = None, name: str = "x", **overrides: Any
) -> Build:
    """Build `paths` to `folder`/`name` and verify the result.

    By default, texts are neither cleaned nor deduplicated.
    """
    defaults = {"tokenizer": "byte", "clean": (), "dedup": False}
    if overrides.get("split") != "given":
        defaults["val_fraction"] = 0.5
    recipe = load_recipe(corpus, inputs=tuple(map(str, paths)), **{**defaults, **overrides})
    build(recipe, folder / name, name=name, replace=True, progress=QUIET)
    result = Build(folder / name)
    assert list(verify(result)) == []
    return result


def read_texts(result: Build) -> list[str]:
    """Return the texts of both splits in the order of input file and position."""
    tokenizer = load_tokenizer(result.folder, result.manifest)
    is_special = np.zeros(result.vocab_size, bool)
    is_special[list(result.manifest.special_tokens.values())] = True
    found = []
    for split in ("train", "val"):
        for number, entry in enumerate(result.docs(split)):
            ids = result.document(split, number)
            text = tokenizer.decode_bytes(ids[~is_special[ids]]).decode()
            found.append((int(entry["source"]), int(entry["position"]), text))
    positions = [position for *position, _ in found]
    assert len(set(map(tuple, positions))) == len(positions)
    return [text for *_, text in sorted(found)]


def read_stats(result: Build) -> dict[str, Any]:
    """Return stats.json, after checking that every document that was read is counted once."""
    stats: dict[str, Any] = json.loads((result.folder / "stats.json").read_bytes())
    documents = stats["documents"]
    assert documents["read"] == sum(n for key, n in documents.items() if key != "read")
    return stats
