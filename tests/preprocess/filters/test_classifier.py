"""The filter `classifier`: its scores, its file, and its training."""

from __future__ import annotations

import itertools
import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from preprocess.build.plan import plan_estimate
from preprocess.build.train_classifier import train_classifier
from preprocess.build.try_filters import format_trial, try_filters
from preprocess.documents import make_batch
from preprocess.errors import FolioError, MisuseError
from preprocess.filters import words as words_module
from preprocess.filters.catalog import load_filter
from preprocess.filters.chain import load_recipe_filters
from preprocess.filters.classifier_model import (
    METADATA_KEY,
    WEIGHT_UNIT,
    ClassifierModel,
    quantize,
    read_classifier,
    write_classifier,
)
from preprocess.filters.fit_classifier import ExampleWriter
from preprocess.filters.logistic import exp, logistic
from preprocess.filters.spans import MULTIPLIER, hash_spans
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from preprocess.shards.permutation import mix64
from tests.conftest import assert_one_line, file_bytes
from tests.helpers.file_builds import QUIET, build_files, read_stats, read_texts

BITS = 10
PARTS = ["the cat ", "a ", "sat. ", "\n", "日本", "don't ", "...", "é", "x" * 20 + " ", "3.5 ", " ", "мир "]
TEXTS = st.lists(st.lists(st.sampled_from(PARTS), max_size=20).map("".join), min_size=1, max_size=6)
SEA = ["ship", "wave", "sail", "storm", "harbour", "tide"]
TOWN = ["street", "tram", "market", "shop", "square", "house"]
COMMON = ["the", "a", "of", "and", "in", "was", "it", "with"]


@pytest.fixture(scope="module")
def model() -> ClassifierModel:
    weights = np.random.default_rng(3).normal(0, 30, 1 << BITS)
    return ClassifierModel(quantize(weights), -0.75, {"accuracy": 0.5})


def score_slowly(model: ClassifierModel, words: list[str]) -> float:
    """Return the score of a text that has these words, computed with Python's own numbers."""

    def find_bucket(value: int) -> int:
        return int(mix64(np.array([value % (1 << 64)], np.uint64))[0]) >> (64 - BITS)

    def hash_word(word: str) -> int:
        data = np.frombuffer(word.encode(), np.uint8)
        return int(hash_spans(data, np.array([0]), np.array([len(data)]))[0])

    hashes = [hash_word(word) for word in words]
    buckets = [find_bucket(value) for value in hashes]
    buckets += [find_bucket(first * int(MULTIPLIER) + second) for first, second in itertools.pairwise(hashes)]
    total = sum(int(model.weights[bucket]) for bucket in buckets) * WEIGHT_UNIT
    return 1 / (1 + math.exp(-(model.bias + total / max(len(buckets), 1))))


def score(model: ClassifierModel, texts: list[str]) -> list[float]:
    scores: list[float] = model.score(pa.array(texts, pa.large_string())).tolist()
    return scores


def test_scores_agree_with_a_plain_computation(model: ClassifierModel) -> None:
    texts = {
        "": [], "  \n": [], "word": ["word"], "The cat, don't!": ["The", "cat", ",", "don't", "!"],
        "日本 мир...": ["日", "本", "мир", "..."], "a a a": ["a", "a", "a"],
    }  # fmt: skip
    expected = [score_slowly(model, words) for words in texts.values()]
    assert score(model, list(texts)) == pytest.approx(expected, rel=1e-13)
    assert len({*expected}) == 5  # the two texts without words have the same score


@given(texts=TEXTS)
def test_a_score_has_the_same_bits_in_any_batch_and_with_any_windows(model: ClassifierModel, texts: list[str]) -> None:
    expected = score(model, texts)
    assert [score(model, [text])[0] for text in texts] == expected
    assert score(model, texts[::-1]) == expected[::-1]
    for size in (3, 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(words_module, "GROUP_BYTES", size)
            assert score(model, texts) == expected


def test_a_long_text_is_scored_in_windows(model: ClassifierModel, monkeypatch: pytest.MonkeyPatch) -> None:
    words = random.Random(1).choices(SEA + COMMON, k=20_000)
    text = " ".join(words)
    monkeypatch.setattr(words_module, "GROUP_BYTES", 30_000)
    assert len(text) > 2 * words_module.GROUP_BYTES
    assert score(model, [text, "a"]) == pytest.approx([score_slowly(model, words), score_slowly(model, ["a"])])


def test_exp_is_that_of_the_library_to_the_last_digits() -> None:
    x = np.concatenate([np.linspace(-699, 699, 20_001), np.linspace(-1, 1, 2_001), [0.0, -1e-300]])
    np.testing.assert_allclose(exp(x), np.exp(x), rtol=4e-16)
    assert logistic(np.array([0.0, 1e6, -1e6])).tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert [exp(x[i : i + 1])[0] for i in range(0, len(x), 97)] == exp(x)[::97].tolist()  # at any index of an array


def test_a_model_is_read_as_it_was_written(tmp_path: Path, model: ClassifierModel) -> None:
    write_classifier(tmp_path / "a", model)
    write_classifier(tmp_path / "b", model)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = read_classifier(tmp_path / "a")
    np.testing.assert_array_equal(found.weights, model.weights)
    assert (found.bias, found.training) == (model.bias, model.training)


def change_header(path: Path, **changes: Any) -> None:
    """Write a model whose header differs, and whose checksum does not."""
    read = read_classifier(path)
    header = {"version": 1, "ngram_order": 2, "bucket_bits": BITS, "bias": read.bias, "training": {}, "sha256": ""}
    save_file({"weights": read.weights}, path, metadata={METADATA_KEY: json.dumps(header | changes)})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (
        lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\xff" + bytes(8)), "its checksum differs",
    ),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-5]), "is not a model of the filter classifier"),
    "empty": (lambda path: path.write_bytes(b""), "it is not a safetensors file"),
    "text": (lambda path: path.write_text("badger\nold river\n"), "it is not a safetensors file"),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04K\x01."), "it is not a safetensors file"),
    "other program": (lambda path: save_file({"weights": np.zeros(4, np.int32)}, path), "file of another program"),
    "other type": (
        lambda path: save_file({"weights": np.zeros(4)}, path, metadata={METADATA_KEY: "[]"}), "of another program",
    ),
    "not JSON": (lambda path: save_file({"weights": np.zeros(4)}, path, metadata={METADATA_KEY: "{"}), "Expecting"),
    "later version": (lambda path: change_header(path, version=2), r"are \(2, 2\), expected \(1, 2\)"),
    "changed bias": (lambda path: change_header(path, bias=1.0), "its checksum differs"),
    "too large": (lambda path: path.open("r+b").truncate(200 << 20), "expected at most"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_wrong_file_is_explained(tmp_path: Path, model: ClassifierModel, kind: str) -> None:
    path = tmp_path / "model"
    write_classifier(path, model)
    damage, expected = DAMAGE[kind]
    damage(path)
    with pytest.raises(FolioError, match=expected) as e:
        read_classifier(path)
    assert_one_line(str(e.value).replace(str(tmp_path), ""))


def test_a_model_whose_checksum_is_right_can_still_be_wrong(tmp_path: Path) -> None:
    for weights, bias, expected in (
        (np.zeros(1 << 4, np.int32), 0.0, "bucket_bits must be from 8 to 24, got 4"),
        (np.zeros(1000, np.int32), 0.0, r"int32 of shape \(1000,\), expected int32 of \(512,\)"),
        (np.full(1 << 8, 2**31 - 1, np.int32), 0.0, "a weight is beyond"),
        (np.zeros(1 << 8, np.int64), 0.0, "its weights are int64"),
        (np.zeros(1 << 8, np.int32), 1e300, "its bias 1e"),
    ):
        write_classifier(tmp_path / "a", ClassifierModel(weights, bias))
        with pytest.raises(FolioError, match=expected):
            read_classifier(tmp_path / "a")


def test_a_file_that_is_not_there_or_has_changed_is_explained(tmp_path: Path, model: ClassifierModel) -> None:
    recipe = Recipe(corpus="x", filters=(f"classifier:model={tmp_path / 'none'}",))
    with pytest.raises(MisuseError, match="the filter classifier names the file .*, which does not exist"):
        load_recipe_filters(recipe)
    with pytest.raises(MisuseError, match="needs a model; write classifier:model=FILE"):
        load_filter("classifier")
    with pytest.raises(MisuseError, match="the filter classifier names .*, which is not a regular file"):
        load_recipe_filters(Recipe(corpus="x", filters=(f"classifier:model={tmp_path}",)))
    write_classifier(tmp_path / "a", model)
    with pytest.raises(FolioError, match="has changed since the command began"):
        load_filter(f"classifier:model={tmp_path / 'a'},sha256={'0' * 64}")


def make_texts(words: list[str], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(COMMON, k=12) + rng.choices(words, k=3)) + f" {seed} {i}." for i in range(count)]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def train(path: Path, like: list[Path], unlike: list[Path]) -> dict[str, Any]:
    recipes = [load_recipe(None, inputs=tuple(map(str, paths)), tokenizer="byte") for paths in (like, unlike)]
    return train_classifier(*recipes, path, replace=True, progress=QUIET)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that likes texts about the sea, and of its examples."""
    folder = tmp_path_factory.mktemp("trained")
    like, unlike = write_lines(folder / "sea.jsonl", make_texts(SEA, 200, 1)), make_texts(TOWN, 300, 2)
    write_lines(folder / "town.jsonl", unlike)
    figures = train(folder / "model", [like], [folder / "town.jsonl"])
    assert (figures["documents_like"], figures["held_out_unlike"], figures["accuracy"]) == (200, 30, 1.0)
    assert read_classifier(folder / "model").training == figures
    return folder


def test_training_separates_texts_that_it_has_not_read(trained: Path) -> None:
    model = read_classifier(trained / "model")
    assert min(score(model, make_texts(SEA, 50, 3))) > 0.5 > max(score(model, make_texts(TOWN, 50, 4)))


def test_a_model_has_the_same_bytes_in_whatever_order_its_documents_are_read(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (trained / "model").read_bytes()
    for name in ("sea", "town"):  # in another order, some twice, in several files and partitions
        texts = [json.loads(line)["text"] for line in (trained / f"{name}.jsonl").read_text().splitlines()]
        random.Random(5).shuffle(texts)
        write_lines(tmp_path / f"{name}2.jsonl", texts[:90] + texts[:5])
        write_lines(tmp_path / f"{name}1.jsonl", texts[90:])
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3_000)
    paths = [[tmp_path / f"{name}{i}.jsonl" for i in (1, 2)] for name in ("sea", "town")]
    train(tmp_path / "model", *paths)
    assert (tmp_path / "model").read_bytes() == expected


@pytest.mark.parametrize("group_bytes", [1 << 20, 20])
def test_the_beginning_of_a_long_document_is_trained_on(monkeypatch: pytest.MonkeyPatch, group_bytes: int) -> None:
    monkeypatch.setattr(words_module, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr("preprocess.filters.fit_classifier.MAX_FEATURES", 7)
    texts = pa.array(["a b c d e f g", "", "h i", "a b c d" + " and more of it" * 9], pa.large_string())
    with tempfile.TemporaryFile() as file:
        writer = ExampleWriter(file)
        writer.add(texts, np.arange(64, dtype=np.uint8).reshape(4, 16), 1)
        examples = writer.finish()
        found = [examples.gather(np.array([row])).buckets.tolist() for row in range(4)]
    assert [len(each) for each in found] == [7, 0, 3, 7]
    assert found[0] == found[3]  # a, a b, b, b c, c, c d, d


def test_too_few_examples_and_wrong_targets_are_explained(tmp_path: Path) -> None:
    many, few = (write_lines(tmp_path / f"{n}.jsonl", make_texts(SEA, n, n)) for n in (20, 9))
    write_lines(few, make_texts(SEA, 9, 9) * 3)
    with pytest.raises(FolioError, match="--like has 9 different documents, expected at least 10"):
        train(tmp_path / "model", [few], [many])
    with pytest.raises(MisuseError, match="the folder .* does not exist"):
        train(tmp_path / "none" / "model", [many], [many])
    with pytest.raises(MisuseError, match="exists; choose another --out"):
        train(tmp_path, [many], [many])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20.jsonl", "9.jsonl"]


def test_a_build_keeps_the_documents_with_a_high_score(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text for pair in zip(make_texts(SEA, 60, 6), make_texts(TOWN, 60, 7), strict=True) for text in pair]
    path, spec = write_lines(tmp_path / "a.jsonl", texts), f"classifier:model={trained / 'model'}"
    whole = build_files(tmp_path / "whole", path, filters=(spec,))
    assert sorted(read_texts(whole)) == sorted(texts[::2])
    [entry] = read_stats(whole)["filters"]
    assert entry["dropped"] == {"low_score": 60} and entry["settings"]["model"] == "model"
    assert len(entry["settings"]["sha256"]) == 64 and entry["examples"]["low_score"][0]["value"] < 0.5
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 1_500)
    assert file_bytes(build_files(tmp_path / "parts", path, filters=(spec,)).folder) == file_bytes(whole.folder)


def test_the_content_of_a_model_decides_the_build(tmp_path: Path, trained: Path, model: ClassifierModel) -> None:
    path = write_lines(tmp_path / "a.jsonl", make_texts(SEA, 10, 1))
    copy = tmp_path / "model"
    copy.write_bytes((trained / "model").read_bytes())
    first = build_files(tmp_path / "x", path, filters=(f"classifier:model={trained / 'model'}",))
    assert build_files(tmp_path / "y", path, filters=(f"classifier:model={copy}",)).build_id == first.build_id
    write_classifier(copy, ClassifierModel(model.weights, 9.0))
    assert build_files(tmp_path / "z", path, filters=(f"classifier:model={copy}",)).build_id != first.build_id


def test_filter_try_shows_the_scores(tmp_path: Path, trained: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [make_texts(SEA, 1, 6)[0], make_texts(TOWN, 1, 7)[0]])
    recipe = load_recipe(
        None, inputs=(str(path),), tokenizer="byte", filters=(f"classifier:model={trained / 'model'}",)
    )
    [entry] = try_filters(plan_estimate(recipe, None, QUIET), 10, 3)
    assert entry["dropped"] == {"low_score": 1} and entry["kept_examples"][0]["values"]["low_score"] > 0.5
    assert any("kept 1: low_score 0." in line for line in format_trial(entry))


def test_verdicts_are_by_the_threshold(tmp_path: Path, trained: Path) -> None:
    texts = make_texts(SEA + TOWN, 40, 8)
    batch = make_batch({"text": texts, "source": 0, "position": list(range(40))}, 40)
    expected = score(read_classifier(trained / "model"), texts)
    limit = sorted(expected)[20]
    verdict = load_filter(f"classifier:model={trained / 'model'},min_score={limit!r}").judge(
        batch, batch.column("text")
    )
    assert [reason < 0 for reason in verdict.reasons] == [value >= limit for value in expected]
    assert sum(verdict.reasons < 0) == 20
