"""Texts in both splits of a build: the count agrees with Python sets, for any number of passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.shards import leaks
from preprocess.shards.files import readable_json
from preprocess.shards.format import DOC_DTYPE, MANIFEST, Build, seal
from preprocess.shards.leaks import Location, count_leaks
from tests.conftest import write_split
from tests.helpers.file_builds import build_files
from tests.helpers.runs import make_build

NUM_HALVES = 4  # different halves of a hash: many hashes share one half


def hash_text(text: int) -> bytes:
    """Return the hash of a text. Texts may share the first or the last 64 bits."""
    high, low = divmod(text, NUM_HALVES)
    return (high * (2**64 // NUM_HALVES)).to_bytes(8, "big") + low.to_bytes(8, "big")


def write_build(folder: Path, texts: dict[str, list[int]], shard_documents: int) -> Build:
    """Write a build with these texts, as numbers, in documents of one token."""
    make_build(folder)
    for path in folder.glob("*-0*"):
        path.unlink()
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for split, numbers in texts.items():
        docs = np.zeros(len(numbers), DOC_DTYPE)
        docs["hash"] = [list(hash_text(number)) for number in numbers]
        ids, ends = np.zeros(len(numbers), np.uint16), np.arange(1, len(numbers) + 1)
        manifest["splits"][split] = write_split(
            folder, split, ids, ends, docs, vocab_size=manifest["vocab_size"], shard_tokens=shard_documents
        )
    (folder / MANIFEST).write_bytes(readable_json(seal(manifest)))
    return Build(folder)


TEXTS = st.lists(st.integers(0, NUM_HALVES**2 - 1), min_size=1, max_size=30)


@settings(deadline=None, max_examples=25)
@given(TEXTS, TEXTS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_count_leaks_agrees_with_sets(
    tmp_path_factory: pytest.TempPathFactory, train, val, shard_documents, max_hashes, chunk_documents
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaks, "MAX_HASHES", max_hashes)
        patch.setattr(leaks, "CHUNK_DOCUMENTS", chunk_documents)
        build = write_build(tmp_path_factory.mktemp("leaks") / "x", {"train": train, "val": val}, shard_documents)
        found = count_leaks(build)
    leaked = sorted(set(train) & set(val))
    assert found.num_texts == len(leaked)
    expected = [
        tuple(
            Location(split, f"{split}-{texts.index(text) // shard_documents:05d}.bin", texts.index(text))
            for split, texts in (("train", train), ("val", val))
        )
        for text in leaked[: leaks.MAX_EXAMPLES]
    ]
    assert found.examples == expected


def test_count_leaks_of_a_deduplicated_build_is_zero(tmp_path: Path) -> None:
    rows = [{"text": f"text {i % 7}", "side": "val" if i % 3 else "train"} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given_split = {"split": "given", "split_column": "side"}
    assert count_leaks(build_files(tmp_path, tmp_path / "a.jsonl", dedup=True, **given_split)).num_texts == 0
    found = count_leaks(build_files(tmp_path, tmp_path / "a.jsonl", name="y", **given_split))
    assert found.num_texts == 7 and len(found.examples) == 5
