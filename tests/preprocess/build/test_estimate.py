"""Estimates of builds, the command `preprocess tokenizer`, and builds exported as text."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.build.estimate import choose_documents, estimate_build, format_estimate
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.files import JsonObject
from preprocess.shards.format import Build
from preprocess.tokenizers.interface import Encoded
from tests.helpers.memory import measure_peak_bytes
from tests.preprocess.build.helpers import QUIET

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = [f"row {i} " + "and so on " * (i % 17) for i in range(3000)]
    table = pa.table({"text": texts, "lang": ["en", "ru"] * 1500})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    return tmp_path / "rows.parquet"


def test_estimate_is_near_the_build(rows: Path, tmp_path: Path, preprocess: Run) -> None:
    command = ("estimate", "--input", str(rows), "-n", "300", "--workers", "2", "--json")
    estimate = json.loads(preprocess(*command).stdout)
    build = json.loads(preprocess("build", "--input", str(rows), "--name", "x", "--no-dedup", "--json").stdout)
    documents, tokens = (sum(split[key] for split in build["splits"].values()) for key in ("documents", "tokens"))
    assert estimate["documents"] == 300 and abs(estimate["build"]["documents"] - documents) < 0.3 * documents
    assert abs(estimate["build"]["tokens"] + documents - tokens) < 0.35 * tokens
    lengths = estimate["tokens_per_document"]
    assert lengths["min"] <= lengths["median"] <= lengths["max"] and estimate["tokens_per_s"] > 0
    assert estimate["build"]["disk_bytes"] > 0 and estimate["build"]["workers"] == 2


def test_estimate_is_seeded_and_formatted(rows: Path) -> None:
    recipes = [load_recipe(None, inputs=(str(rows),), tokenizer="byte", seed=seed) for seed in (0, 0, 1)]
    results = [estimate_build(make_plan(recipe, None, QUIET), 50, workers=1) for recipe in recipes]
    assert results[0]["tokens_per_document"] == results[1]["tokens_per_document"] != results[2]["tokens_per_document"]
    lines = format_estimate(results[0])
    assert lines[0].startswith("documents   50 were encoded") and "GB of memory" in lines[-1]


def test_estimate_uses_the_reference_if_the_fast_backend_fails(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(load_recipe(None, inputs=(str(rows),), tokenizer="gpt2"), None, QUIET)
    fast = estimate_build(plan, 50, workers=1)
    assert fast["engine"] == "gigatoken" and plan.tokenizer is not None

    def fail(texts: pa.LargeStringArray) -> Encoded:
        raise RuntimeError("a bug in Rust")

    monkeypatch.setattr(plan.tokenizer, "start_fast_backend", lambda: None)  # it is started already
    monkeypatch.setattr(plan.tokenizer._fast, "encode", fail)  # type: ignore[attr-defined]
    reference = estimate_build(plan, 50, workers=1)
    assert reference["engine"] == "tiktoken"
    assert reference["tokens_per_document"] == fast["tokens_per_document"]


def test_estimate_counts_the_files_of_near_dedup(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"a b c d e f {i}" for i in range(50)]}), tmp_path / "a.parquet")
    recipes = [load_recipe(None, inputs=(str(tmp_path),), tokenizer="byte", near_dedup=near) for near in (None, "drop")]
    plain, near = (estimate_build(make_plan(recipe, None, QUIET), 50, workers=1)["build"] for recipe in recipes)
    shingles, bands = 4 * 3 + 4, 20 * (8 + 16)  # of a document: three sequences of five words, and their number
    run = 24  # one document that has a band in common with another
    assert near["disk_bytes"] - plain["disk_bytes"] == 50 * (shingles + bands + run)


@pytest.mark.parametrize("count", [3, 7, 20, 57])
def test_estimate_of_a_file_that_is_read_as_a_whole_is_exact(tmp_path: Path, count: int) -> None:
    texts = [f"parquet row number {i}" for i in range(count)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    plan = make_plan(load_recipe(None, inputs=(str(tmp_path),), tokenizer="byte"), None, QUIET)
    build = estimate_build(plan, 100, workers=1)["build"]
    assert (build["documents"], build["text_bytes"]) == (count, sum(map(len, texts)))
    assert build["tokens"] == build["text_bytes"]


def test_estimating_a_long_document_needs_a_few_times_its_size(tmp_path: Path) -> None:
    text = "A few words. " * 2_000_000
    (tmp_path / "a.txt").write_text(text)
    plan = make_plan(load_recipe(None, inputs=(str(tmp_path),), document="file", tokenizer="byte"), None, QUIET)
    estimates: list[JsonObject] = []
    assert measure_peak_bytes(lambda: estimates.append(estimate_build(plan, 1, workers=1))) < 3 * len(text)
    assert estimates[0]["tokens_per_document"]["max"] == len(text)


@pytest.mark.parametrize("tokenizer", ["char", "sentencepiece"])
def test_estimate_trains_a_tokenizer_on_its_documents(rows: Path, tokenizer: str) -> None:
    settings = {"num_pieces": 300} if tokenizer == "sentencepiece" else {}
    plan = make_plan(load_recipe(None, inputs=(str(rows),), tokenizer=tokenizer, **settings), None, QUIET)
    assert estimate_build(plan, 100, workers=1)["bytes_per_token"] >= 1


def test_estimate_rejects_input_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}')
    plan = make_plan(load_recipe(None, inputs=(str(tmp_path / "a.jsonl"),)), None, QUIET)
    with pytest.raises(FolioError, match="no document is left of own: 1 empty; the reason: no text"):
        estimate_build(plan, 5, workers=1)


@pytest.mark.parametrize(("limit", "value"), [("MAX_TEXT_BYTES", 1000), ("MAX_DOCUMENTS", 100)])
def test_estimate_stops_reading_a_large_partition(
    rows: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """The input size of a partially read partition is taken to be the size of its text."""
    plan = make_plan(load_recipe(None, inputs=(str(rows),), tokenizer="byte", lang_column="lang"), None, QUIET)
    complete = estimate_build(plan, 50, workers=1)["build"]
    monkeypatch.setattr(f"preprocess.build.estimate.{limit}", value)
    monkeypatch.setattr("preprocess.stages.pipeline.MERGED_BYTES", 0)  # each row group is a batch
    partial = estimate_build(plan, 50, workers=1)["build"]
    assert partial["text_bytes"] == sum(plan.partition_bytes()) != complete["text_bytes"]
    texts, languages = choose_documents(plan, 10**6)
    assert 0 < len(texts) == len(languages) < 3000 and set(languages.to_pylist()) == {"en", "ru"}


def test_tokenizer_train_and_inspect(mirror: Path, tmp_path: Path, preprocess: Run) -> None:
    env = {"PREPROCESS_MIRROR": str(mirror)}
    train = ("tokenizer", "train", "--corpus", "pud")
    for workers in ("1", "2"):
        done = preprocess(*train, "--num-pieces", "900", "--output", f"tok{workers}", "--workers", workers, env=env)
        assert done.returncode == 0 and "trained sentencepiece with 900 ids: tok" in done.stdout, done.stderr
    assert (tmp_path / "tok1/sentencepiece.model").read_bytes() == (tmp_path / "tok2/sentencepiece.model").read_bytes()
    assert [p.name for p in tmp_path.glob(".tok1*")] == [".tok1.lock"]
    done = preprocess(*train, "--num-pieces", "900", "--output", "tok1", env=env)
    assert done.returncode == 2 and "exists already; pass --replace" in done.stderr
    done = preprocess(*train, "--tokenizer", "gpt2", "--output", "other", env=env)
    assert done.returncode == 2 and "the gpt2 tokenizer is not trained" in done.stderr
    # A build that trains its tokenizer has the same tokens as a build with the trained tokenizer.
    for name, tokenizer in (("own", ("sentencepiece", "--num-pieces", "900")), ("given", ("./tok1",))):
        done = preprocess("build", "--corpus", "pud", "--tokenizer", *tokenizer, "--name", name, env=env)
        assert done.returncode == 0, done.stderr
    own, given = (Build(tmp_path / "shards" / name) for name in ("own", "given"))
    assert own.manifest.splits == given.manifest.splits and "tokenizer_sha256" in given.manifest.recipe
    assert str(tmp_path) not in (given.folder / "manifest.json").read_text()
    figures = json.loads(preprocess("tokenizer", "inspect", "own", "--json").stdout)
    assert set(figures) == {"en", "ru"} and figures["ru"]["documents"] == 100
    assert 0.9 < figures["ru"]["character_coverage"] <= 1
    table = preprocess("tokenizer", "inspect", "gpt2", "--corpus", "pud", "-n", "200", env=env).stdout.splitlines()
    assert table[0].split()[0] == "language" and [line.split()[0] for line in table[1:]] == ["en", "ru"]


def test_export_text_by_language(mirror: Path, tmp_path: Path, preprocess: Run) -> None:
    env = {"PREPROCESS_MIRROR": str(mirror)}
    preprocess("build", "--corpus", "pud", "--num-pieces", "600", env=env)
    done = preprocess("export", "pud", "--format", "text", "--by", "language", "--output", "text")
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / "text").iterdir()}
    assert names == {f"{split}_{lang}.txt" for split in ("train", "val") for lang in ("en", "ru")}
    for lang in ("en", "ru"):
        files = [tmp_path / f"text/{split}_{lang}.txt" for split in ("train", "val")]
        texts = [text for file in files for text in file.read_text().split("\n\n") if text]
        assert sorted(texts) == sorted((mirror / f"pud/{lang}.txt").read_text().splitlines())
    assert preprocess("export", "pud", "--format", "text", "--output", "both").returncode == 0
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"train.txt", "val.txt"}
    assert preprocess("export", "pud", "--format", "text", "--output", "both").returncode == 2
    assert preprocess("export", "pud", "--format", "nanogpt", "--by", "language", "--output", "x").returncode == 2


def test_export_by_language_stays_in_the_output_directory(tmp_path: Path, preprocess: Run) -> None:
    languages = ["../../evil", "en", None, "../../evil", "en", None] * 5
    lines = [json.dumps({"text": f"t{i}", "lang": lang}) for i, lang in enumerate(languages)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    settings = ("--lang-column", "lang", "--tokenizer", "byte", "--val-fraction", "0.5")
    preprocess("build", "--input", "a.jsonl", *settings, "--name", "x")
    assert preprocess("export", "x", "--format", "text", "--by", "language", "--output", "out").returncode == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{split}_{tag}.txt" for split in ("train", "val") for tag in ("______evil", "en", "unknown")}


@pytest.mark.parametrize(("dedup", "num_leaks"), [(False, 2), (True, 0)])
def test_estimate_warns_about_texts_in_both_given_splits(tmp_path: Path, dedup: bool, num_leaks: int) -> None:
    texts = {"train": [f"row {i}" for i in range(20)], "val": ["row 3", "row 3", "row 17", "new", ""]}
    for side, values in texts.items():
        lines = (json.dumps({"text": text, "side": side}) + "\n" for text in values)
        (tmp_path / f"{side}.jsonl").write_text("".join(lines))
    settings = {"tokenizer": "byte", "split": "given", "split_column": "side", "dedup": dedup}
    plan = make_plan(load_recipe(None, inputs=(str(tmp_path),), **settings), None, QUIET)
    result = estimate_build(plan, 100, workers=1)
    warning = "2 texts are in both train and val, so the validation loss will be too low; pass --dedup"
    assert result["leaks"] == num_leaks and any(warning in line for line in format_estimate(result)) == (not dedup)
