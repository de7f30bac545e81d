"""Builds that find nearly equal documents, compared with the exact similarities of all pairs."""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import SPLITS, Build
from preprocess.shards.verify import verify
from preprocess.stream import TokenStream
from tests.conftest import file_bytes
from tests.preprocess.build.helpers import run_build

RNG = random.Random(3)
WORDS = ["".join(RNG.choices("abcdefghij", k=RNG.randint(2, 8))) for _ in range(3000)]


def make_texts(num_originals: int, *, seed: int = 0, max_fraction: float = 0.15) -> list[str]:
    """Return random documents, and of a third of them copies with at least one and up to `max_fraction` other words."""
    rng = random.Random(seed)
    texts = []
    for number in range(num_originals):
        words = rng.choices(WORDS, k=rng.randint(3, 150))
        texts.append(" ".join(words))
        for _ in range(rng.randint(1, 3) if number % 3 == 0 else 0):
            copy = list(words)
            for _ in range(max(1, int(len(words) * rng.random() * max_fraction))):
                copy[rng.randrange(len(copy))] = rng.choice(WORDS)
            texts.append(" ".join(copy))
    rng.shuffle(texts)
    return texts


def list_shingles(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}


def list_similar_pairs(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of texts whose exact similarity is at least `threshold`."""
    sets = [list_shingles(text) for text in texts]
    documents: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, each in enumerate(sets):
        for shingle in each:
            documents[shingle].append(i)
    candidates = {pair for found in documents.values() for pair in itertools.combinations(found, 2)}
    return {(i, j) for i, j in candidates if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])}


def find_components(num_documents: int, pairs: set[tuple[int, int]]) -> list[int]:
    """Return the first document of each document's component."""
    first = list(range(num_documents))
    for _ in range(num_documents):
        before = list(first)
        for i, j in pairs:
            first[i] = first[j] = min(first[i], first[j])
        if before == first:
            break
    return first


def write_records(path: Path, texts: list[str], **columns: list[Any]) -> Path:
    rows = [{"text": text, **{name: values[i] for name, values in columns.items()}} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build_records(path: Path, output_dir: Path, *, workers: int = 1, **settings_: Any) -> Build:
    recipe = load_recipe(None, inputs=(str(path),), **{"tokenizer": "byte", "near_dedup": "drop", **settings_})
    run_build(recipe, output_dir, workers=workers)
    build = Build(output_dir)
    assert list(verify(build)) == []
    return build


def read_texts(build: Build, split: str) -> list[str]:
    """Return the documents of a split of a build with the tokenizer byte."""
    eot_id = build.manifest.eot_id
    documents = (build.document(split, i) for i in range(len(build.docs(split))))
    return [bytes(ids[ids != eot_id].astype("u1")).decode() for ids in documents]


def read_stats(build: Build) -> dict[str, Any]:
    stats: dict[str, Any] = json.loads((build.folder / "stats.json").read_bytes())
    return stats


def test_drop_keeps_the_first_of_each_cluster(tmp_path: Path) -> None:
    texts = make_texts(300, max_fraction=0.05)
    pairs = list_similar_pairs(texts, 0.8)
    first = find_components(len(texts), pairs)
    expected = {text for i, text in enumerate(texts) if first[i] == i}
    build = build_records(write_records(tmp_path / "a.jsonl", texts), tmp_path / "x")
    kept = {*read_texts(build, "train"), *read_texts(build, "val")}
    assert expected <= kept and len(kept - expected) <= 0.01 * len(pairs)  # a pair may have no band in common
    counts = read_stats(build)["documents"]
    assert counts["near_duplicates"] == len(set(texts)) - len(kept) > 50
    assert counts["read"] == len(texts) and counts["kept"] == len(kept)


@pytest.mark.parametrize("split", ["exact", "threshold"])
def test_group_keeps_all_documents_and_no_similar_ones_on_both_sides(tmp_path: Path, split: str) -> None:
    texts = make_texts(400, max_fraction=0.04)
    build = build_records(write_records(tmp_path / "a.jsonl", texts), tmp_path / "x", near_dedup="group", split=split)
    train, val = read_texts(build, "train"), read_texts(build, "val")
    assert sorted(train + val) == sorted(set(texts)) and len(val) > 20
    both = [*train, *val]
    assert not [(i, j) for i, j in list_similar_pairs(both, 0.8) if i < len(train) <= j]
    assert read_stats(build)["split"]["near_duplicates_grouped"] > 100
    without = build_records(tmp_path / "a.jsonl", tmp_path / "y", near_dedup=None, split=split)
    both = [*(train := read_texts(without, "train")), *read_texts(without, "val")]
    assert [(i, j) for i, j in list_similar_pairs(both, 0.8) if i < len(train) <= j]


@pytest.mark.parametrize("mode", ["drop", "group"])
def test_no_validation_document_is_nearly_equal_to_a_training_document(tmp_path: Path, mode: str) -> None:
    texts = make_texts(500, seed=8)
    path = write_records(tmp_path / "a.jsonl", texts)
    build = build_records(path, tmp_path / "x", near_dedup=mode, val_fraction=0.3)
    train, val = read_texts(build, "train"), read_texts(build, "val")
    pairs = list_similar_pairs([*train, *val], 0.8)
    assert not [(i, j) for i, j in pairs if i < len(train) <= j] and len(val) > 100
    assert bool(pairs) == (mode == "group")
    without = build_records(path, tmp_path / "y", near_dedup=None, val_fraction=0.3)
    train, val = read_texts(without, "train"), read_texts(without, "val")
    assert sum(i < len(train) <= j for i, j in list_similar_pairs([*train, *val], 0.8)) > 20


def test_groups_of_the_recipe_are_joined_if_they_contain_similar_documents(tmp_path: Path) -> None:
    texts = make_texts(200, max_fraction=0.02)
    groups = [f"g{i // 2}" for i in range(len(texts))]  # unrelated neighbours
    path = write_records(tmp_path / "a.jsonl", texts, group=groups)
    build = build_records(path, tmp_path / "x", near_dedup="group", group_column="group", dedup=False)
    sides = {text: split for split in SPLITS for text in read_texts(build, split)}
    assert set(sides) == set(texts) and set(sides.values()) == set(SPLITS)
    for first, second in zip(texts[::2], texts[1::2], strict=False):
        assert sides[first] == sides[second]
    assert all(sides[texts[i]] == sides[texts[j]] for i, j in list_similar_pairs(texts, 0.8))


@pytest.mark.parametrize("mode", ["drop", "group"])
def test_workers_partitions_and_buckets_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = write_records(tmp_path / "a.jsonl", make_texts(200))
    expected = file_bytes(build_records(path, tmp_path / "expected/x", near_dedup=mode).folder)
    for number, (workers, partition_bytes) in enumerate([(2, 9_000), (1, 2_000), (5, 5_000)]):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        monkeypatch.setattr("preprocess.build.near_dedup.shingles.COMPARED_SHINGLES", 50 * (number + 1))
        build = build_records(path, tmp_path / str(number) / "x", workers=workers, near_dedup=mode)
        assert file_bytes(build.folder) == expected
        assert {each.name for each in (tmp_path / str(number)).iterdir()} <= {"x", ".x.lock"}


def test_trained_tokenizer_sees_only_the_kept_documents(tmp_path: Path) -> None:
    texts = ["a b c d e f g h " * 20 + "x" * 5, "a b c d e f g h " * 20 + "z" * 5, *make_texts(20, max_fraction=0)]
    build = build_records(write_records(tmp_path / "a.jsonl", texts), tmp_path / "x", tokenizer="char")
    assert read_stats(build)["documents"]["near_duplicates"] >= 1


def test_documents_without_words_are_not_similar(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", ["!!!", "???", "...", "—", *make_texts(10, max_fraction=0)])
    build = build_records(path, tmp_path / "x")
    assert {"!!!", "???", "...", "—"} <= {*read_texts(build, "train"), *read_texts(build, "val")}


def test_clusters_are_those_of_datasketch(tmp_path: Path) -> None:
    """Both miss some pairs with a similarity near the threshold, and not the same ones."""
    datasketch = pytest.importorskip("datasketch")
    texts = make_texts(300, seed=5, max_fraction=0.05)
    index = datasketch.MinHashLSH(num_perm=100, params=(20, 5))
    pairs = set()
    for i, text in enumerate(texts):
        signature = datasketch.MinHash(num_perm=100)
        for shingle in list_shingles(text):
            signature.update(" ".join(shingle).encode())
        for other in index.query(signature):
            a, b = list_shingles(text), list_shingles(texts[other])
            if len(a & b) >= 0.8 * len(a | b):
                pairs.add((other, i))
        index.insert(i, signature)
    first = find_components(len(texts), pairs)
    expected = {text for i, text in enumerate(texts) if first[i] == i}
    build = build_records(write_records(tmp_path / "a.jsonl", texts), tmp_path / "x")
    kept = {*read_texts(build, "train"), *read_texts(build, "val")}
    assert len(pairs) > 50 and max(len(kept - expected), len(expected - kept)) <= 0.1 * len(pairs)


@pytest.mark.parametrize("settings_", [{"split": "contiguous"}, {"val_fraction": 0.0}])
def test_group_without_a_random_split_is_rejected(settings_: dict[str, Any]) -> None:
    with pytest.raises(MisuseError, match="near_dedup 'group' keeps documents on one side of a random split"):
        load_recipe(None, inputs=("a.txt",), near_dedup="group", **settings_)


def test_stream_rejects_near_dedup(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", ["a", "b"])
    recipe = load_recipe(None, inputs=(str(path),), tokenizer="byte", near_dedup="drop")
    with pytest.raises(MisuseError, match="a stream cannot find nearly equal documents"):
        TokenStream(recipe, block_size=4)


def test_all_documents_in_one_cluster_cannot_be_split(tmp_path: Path) -> None:
    text = " ".join(WORDS[:100])
    path = write_records(tmp_path / "a.jsonl", [f"{text} {word}" for word in WORDS[100:120]])
    with pytest.raises(FolioError, match="all 20 documents are nearly equal"):
        build_records(path, tmp_path / "x", near_dedup="group")
