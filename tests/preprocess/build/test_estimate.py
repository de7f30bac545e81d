"""What is told before a build, of a tokenizer, and written back as text."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.build.estimate import estimate_build, format_estimate
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build

Run = Callable[..., subprocess.CompletedProcess]
QUIET = Progress(quiet=True)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = [f"row {i} " + "and so on " * (i % 17) for i in range(3000)]
    pq.write_table(
        pa.table({"text": texts, "lang": ["en", "ru"] * 1500}), tmp_path / "rows.parquet", row_group_size=500
    )
    return tmp_path / "rows.parquet"


def test_estimates_are_near_what_is_built(rows: Path, tmp_path: Path, preprocess: Run) -> None:
    told = json.loads(preprocess("estimate", "--input", str(rows), "-n", "300", "--workers", "2", "--json").stdout)
    built = json.loads(preprocess("build", "--input", str(rows), "--name", "x", "--no-dedup", "--json").stdout)
    documents, tokens = (sum(s[key] for s in built["splits"].values()) for key in ("documents", "tokens"))
    assert told["documents"] == 300 and abs(told["build"]["documents"] - documents) < 0.3 * documents
    assert abs(told["build"]["tokens"] + documents - tokens) < 0.35 * tokens
    lengths = told["tokens_per_document"]
    assert lengths["min"] <= lengths["median"] <= lengths["max"] and told["tokens_per_s"] > 0
    assert told["build"]["disk_bytes"] > 0 and told["build"]["workers"] == 2


def test_a_sample_is_seeded_and_spelled(rows: Path) -> None:
    recipes = [load_recipe(None, inputs=(str(rows),), tokenizer="byte", seed=seed) for seed in (0, 0, 1)]
    results = [estimate_build(make_plan(recipe, None, QUIET), 50, workers=1) for recipe in recipes]
    assert results[0]["tokens_per_document"] == results[1]["tokens_per_document"] != results[2]["tokens_per_document"]
    lines = format_estimate(results[0])
    assert lines[0].startswith("sample      50 documents") and "GB of memory" in lines[-1]


@pytest.mark.parametrize("tokenizer", ["char", "sentencepiece"])
def test_a_tokenizer_that_is_trained_is_foreseen_on_the_sample(rows: Path, tokenizer: str) -> None:
    spans = {"num_pieces": 300} if tokenizer == "sentencepiece" else {}
    plan = make_plan(load_recipe(None, inputs=(str(rows),), tokenizer=tokenizer, **spans), None, QUIET)
    assert estimate_build(plan, 100, workers=1)["bytes_per_token"] >= 1


def test_nothing_to_sample(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}')
    with pytest.raises(FolioError, match="there is nothing to sample"):
        estimate_build(make_plan(load_recipe(None, inputs=(str(tmp_path / "a.jsonl"),)), None, QUIET), 5, workers=1)


def test_a_tokenizer_is_trained_looked_at_and_used(mirror: Path, tmp_path: Path, preprocess: Run) -> None:
    env = {"PREPROCESS_MIRROR": str(mirror)}
    for workers in ("1", "2"):
        made = preprocess(
            "tokenizer",
            "train",
            "--corpus",
            "pud",
            "--num-spans",
            "900",
            "--output",
            f"tok{workers}",
            "--workers",
            workers,
            env=env,
        )
        assert made.returncode == 0 and "trained sentencepiece with 900 ids: tok" in made.stdout, made.stderr
    assert (tmp_path / "tok1/sentencepiece.model").read_bytes() == (tmp_path / "tok2/sentencepiece.model").read_bytes()
    assert [p.name for p in tmp_path.glob(".tok1*")] == [".tok1.lock"]
    again = preprocess("tokenizer", "train", "--corpus", "pud", "--num-spans", "900", "--output", "tok1", env=env)
    assert again.returncode == 2 and "is there already; pass --replace" in again.stderr
    refused = preprocess("tokenizer", "train", "--corpus", "pud", "--tokenizer", "gpt2", "--output", "other", env=env)
    assert refused.returncode == 2 and "the gpt2 tokenizer is not trained" in refused.stderr
    # A build that trains its own, and one that is given the same model, hold the same tokens.
    for name, tokenizer in (("own", ("sentencepiece", "--num-spans", "900")), ("given", ("./tok1",))):
        built = preprocess("build", "--corpus", "pud", "--tokenizer", *tokenizer, "--name", name, env=env)
        assert built.returncode == 0, built.stderr
    own, given = (Build(tmp_path / "shards" / name) for name in ("own", "given"))
    assert own.manifest["splits"] == given.manifest["splits"] and "tokenizer_sha256" in given.manifest["recipe"]
    assert str(tmp_path) not in (given.folder / "manifest.json").read_text()
    (tmp_path / "tok1/sentencepiece.model").write_bytes(
        (tmp_path / "shards/own/tokenizer/sentencepiece.model").read_bytes() + b""
    )
    found = json.loads(preprocess("tokenizer", "inspect", "own", "--json").stdout)
    assert (
        set(found) == {"en", "ru"} and found["ru"]["documents"] == 100 and 0.9 < found["ru"]["character_coverage"] <= 1
    )
    table = preprocess("tokenizer", "inspect", "gpt2", "--corpus", "pud", "-n", "200", env=env).stdout.splitlines()
    assert table[0].split()[0] == "language" and [line.split()[0] for line in table[1:]] == ["en", "ru"]


def test_text_comes_back_by_language(mirror: Path, tmp_path: Path, preprocess: Run) -> None:
    env = {"PREPROCESS_MIRROR": str(mirror)}
    preprocess("build", "--corpus", "pud", "--num-spans", "600", env=env)
    out = preprocess("export", "pud", "--format", "text", "--by", "language", "--output", "text")
    assert out.returncode == 0, out.stderr
    names = {p.name for p in (tmp_path / "text").iterdir()}
    assert names == {f"{split}_{lang}.txt" for split in ("train", "val") for lang in ("en", "ru")}
    for lang in ("en", "ru"):
        texts = [
            t for s in ("train", "val") for t in (tmp_path / f"text/{s}_{lang}.txt").read_text().split("\n\n") if t
        ]
        assert sorted(texts) == sorted((mirror / f"pud/{lang}.txt").read_text().splitlines())
    assert preprocess("export", "pud", "--format", "text", "--output", "both").returncode == 0
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"train.txt", "val.txt"}
    assert preprocess("export", "pud", "--format", "text", "--output", "both").returncode == 2
    assert preprocess("export", "pud", "--format", "nanogpt", "--by", "language", "--output", "x").returncode == 2


def test_a_language_that_is_a_path_stays_in_the_folder(tmp_path: Path, preprocess: Run) -> None:
    rows_ = [
        {"text": f"t{i}", "lang": lang}
        for i, lang in enumerate(["../../evil", "en", None, "../../evil", "en", None] * 5)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows_)))
    preprocess(
        "build",
        "--input",
        "a.jsonl",
        "--lang-column",
        "lang",
        "--tokenizer",
        "byte",
        "--name",
        "x",
        "--val-fraction",
        "0.5",
    )
    assert preprocess("export", "x", "--format", "text", "--by", "language", "--output", "out").returncode == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {f"{s}_{tag}.txt" for s in ("train", "val") for tag in ("______evil", "en", "unknown")}
