"""The filter `perplexity`, with a run that was trained on one sentence."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from preprocess.build.plan import plan_estimate
from preprocess.build.try_filters import format_trial, try_filters
from preprocess.documents import make_batch
from preprocess.errors import FolioError, MisuseError
from preprocess.filters.catalog import load_filter
from preprocess.filters.chain import load_recipe_filters
from preprocess.filters.interface import Verdict
from preprocess.recipes.catalog import load_recipe
from preprocess.recipes.schema import Recipe
from tests.conftest import ROOT, assert_one_line, file_bytes
from tests.helpers.file_builds import QUIET, read_stats, read_texts
from tests.helpers.runs import ALPHABET, EOT_ID, SENTENCE, encode, make_build, train_run
from tests.preprocess.build.helpers import run_build
from tests.preprocess.cli.checks import check_error
from train.core.cli import warn
from train.run.checkpoint import find_checkpoint, list_checkpoints
from train.run.sampling import open_trained_model

Run = Callable[..., subprocess.CompletedProcess]
NOISE = "zq xj vkw qqz jxx kvz wqj\n"
TEXTS = [SENTENCE, NOISE, SENTENCE * 3, "the fox", "a", NOISE * 2 + SENTENCE, SENTENCE * 2 + NOISE]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity")
    make_build(folder / "tiny")
    return train_run(folder, "run", max_steps=40)


def judge(spec: str, texts: list[str]) -> Verdict:
    batch = make_batch({"text": texts, "source": 0, "position": list(range(len(texts)))}, len(texts))
    return load_filter(spec).judge(batch, batch.column("text"))


def measure(spec: str, texts: list[str]) -> list[float]:
    values: list[float] = judge(spec, texts).measured["bits_per_byte"].tolist()
    return values


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_bits_agree_with_a_plain_computation(run: Path) -> None:
    """Each token is predicted from all tokens before it, as in the training data, if they fit the context."""
    checkpoint = find_checkpoint(run, warn)
    model = open_trained_model(checkpoint, checkpoint.info.config).model.eval()
    for text in (SENTENCE[:12], NOISE[:15], "a"):  # the context has 16 tokens
        ids = torch.tensor([EOT_ID, *encode(text).tolist()])
        with torch.no_grad():
            logits = model.logits(model.features(ids[None, :-1]))[0].double()
        expected = F.cross_entropy(logits, ids[1:], reduction="sum").item() / math.log(2) / len(text)
        assert measure(f"perplexity:run={run}", [text]) == [pytest.approx(expected, rel=1e-5)]


def test_the_verdict_is_by_the_range(run: Path) -> None:
    easy, hard = measure(f"perplexity:run={run}", [SENTENCE, NOISE])
    assert easy < hard / 2
    middle = (easy + hard) / 2
    for limits, expected in (
        (f"max_bits={middle}", [-1, 1]),
        (f"min_bits={middle}", [0, -1]),
        (f"max_bits={hard!r},min_bits={easy!r}", [-1, -1]),  # the limits themselves are kept
        (f"max_bits={math.nextafter(hard, 0)!r},min_bits={math.nextafter(easy, 9)!r}", [0, 1]),
    ):
        assert judge(f"perplexity:run={run},{limits}", [SENTENCE, NOISE]).reasons.tolist() == expected


def test_a_value_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(run: Path) -> None:
    spec, num_threads = f"perplexity:run={run}", torch.get_num_threads()
    expected = measure(spec, TEXTS)
    assert [measure(spec, [text])[0] for text in TEXTS] == expected
    assert measure(spec, TEXTS[::-1]) == expected[::-1]
    try:
        torch.set_num_threads(3)
        assert measure(spec, TEXTS) == expected
        assert torch.get_num_threads() == 3  # those of the caller
    finally:
        torch.set_num_threads(num_threads)


def test_only_the_beginning_of_a_document_is_measured(run: Path) -> None:
    spec = f"perplexity:run={run},max_bytes={len(SENTENCE)}"
    assert len({*measure(spec, [SENTENCE, SENTENCE + NOISE, SENTENCE + "é" * 9])}) == 1
    # A character that is cut is left out.
    assert measure(f"perplexity:run={run},max_bytes=2", ["aé"]) == measure(spec, ["a"])


def test_a_document_that_cannot_be_encoded_has_its_own_reason(run: Path) -> None:
    verdict = judge(f"perplexity:run={run},max_bits=900", ["A B", "a b", ""])
    assert verdict.reasons.tolist() == [2, -1, -1] and np.isnan(verdict.measured["bits_per_byte"][0])


def build_filtered(folder: Path, path: Path, spec: str, workers: int = 1) -> Any:
    settings: dict[str, Any] = {"tokenizer": "byte", "clean": (), "dedup": False, "val_fraction": 0.5}
    recipe = load_recipe(None, inputs=(str(path),), filters=(spec,), **settings)
    run_build(recipe, folder, name="x", workers=workers)
    from preprocess.shards.format import Build

    return Build(folder)


def make_texts(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    return ["".join(rng.choice(list(ALPHABET[1:]), 30)) if i % 3 else f"{SENTENCE * (1 + i % 4)}" for i in range(count)]


@pytest.mark.slow
def test_builds_have_the_same_bytes_with_any_number_of_workers(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(60)
    path, middle = write_lines(tmp_path / "a.jsonl", texts), float(np.median(measure(f"perplexity:run={run}", texts)))
    spec = f"perplexity:run={run},max_bits={middle!r}"  # exactly the value of a document
    expected = build_filtered(tmp_path / "whole", path, spec)
    [entry] = read_stats(expected)["filters"]
    assert 0 < entry["dropped"]["bits_too_high"] < 40
    assert len(read_texts(expected)) == 60 - entry["dropped"]["bits_too_high"]
    assert entry["settings"]["run"].startswith("step-") and len(entry["settings"]["sha256"]) == 64
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 900)
    found = build_filtered(tmp_path / "two", path, spec, workers=2)
    assert file_bytes(found.folder) == file_bytes(expected.folder)


def test_the_weights_decide_the_build_and_the_folder_does_not(tmp_path: Path, run: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", make_texts(6))
    first = build_filtered(tmp_path / "x", path, f"perplexity:run={run}")
    shutil.copytree(run, tmp_path / "copy")
    assert build_filtered(tmp_path / "y", path, f"perplexity:run={tmp_path / 'copy'}").build_id == first.build_id
    other = train_run(run.parent, "other", max_steps=40, seed=7)  # only its weights differ
    assert list_checkpoints(other)[-1].name == list_checkpoints(run)[-1].name
    assert build_filtered(tmp_path / "z", path, f"perplexity:run={other}").build_id != first.build_id


def test_filter_try_shows_the_bits(tmp_path: Path, run: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [SENTENCE, NOISE])
    [easy, hard] = measure(f"perplexity:run={run}", [SENTENCE, NOISE])
    spec = f"perplexity:run={run},max_bits={(easy + hard) / 2}"
    recipe = load_recipe(None, inputs=(str(path),), tokenizer="byte", filters=(spec,))
    [entry] = try_filters(plan_estimate(recipe, None, QUIET), 10, 3)
    assert entry["dropped"] == {"bits_too_low": 0, "bits_too_high": 1, "cannot_be_encoded": 0}
    assert entry["kept_examples"][0]["values"]["bits_per_byte"] == pytest.approx(easy, rel=1e-4)
    assert any(line.startswith("  kept 1: bits_per_byte ") for line in format_trial(entry))


def open_filters(spec: str) -> None:
    load_recipe_filters(Recipe(corpus="x", filters=(spec,)))


def test_a_run_that_is_missing_or_damaged_is_explained(tmp_path: Path, run: Path) -> None:
    for spec, expected in (
        (f"perplexity:run={tmp_path / 'none'}", "is neither a checkpoint nor a run that has one"),
        (f"perplexity:run={tmp_path}", "is neither a checkpoint nor a run that has one"),
        ("perplexity", "needs a run; write perplexity:run=RUN"),
    ):
        with pytest.raises(MisuseError, match=expected) as e:
            open_filters(spec)
        assert_one_line(str(e.value))
    shutil.copytree(run, tmp_path / "copy")
    for checkpoint in list_checkpoints(tmp_path / "copy"):
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(FolioError, match="checkpoints in .* are damaged"):
        open_filters(f"perplexity:run={tmp_path / 'copy'}")
    with pytest.raises(FolioError, match="has changed since the command began"):
        load_filter(f"perplexity:run={run},sha256={'0' * 64}")


def test_without_torch_the_error_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from preprocess.filters.chain import load_recipe_filters\n"
        "from preprocess.recipes.schema import Recipe\n"
        "load_recipe_filters(Recipe(corpus='x', filters=('perplexity:run=r',)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        "MisuseError: a filter by a model needs PyTorch and the package train, and 'torch' cannot be imported"
        in (done.stderr.splitlines()[-1])
    )


@pytest.mark.slow
def test_the_command_line_names_the_run(preprocess: Run, tmp_path: Path, run: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [SENTENCE, NOISE, SENTENCE * 2])
    arguments = ("--input", "a.jsonl", "--tokenizer", "byte", "--val-fraction", "0", "--quiet")
    done = preprocess("build", *arguments, "--filter-by-model", str(run), "--max-bits", "4")
    assert done.returncode == 0, done.stderr
    assert "filter      perplexity: read 3, dropped 1 (33.3%): bits_too_high 1" in done.stdout
    wrong = preprocess("build", *arguments, "--filter-by-model", "none")
    check_error(wrong, 2, "none is neither a checkpoint nor a run")


def test_limits_without_a_model_or_out_of_range_are_explained(preprocess: Run) -> None:
    check_error(preprocess("build", "--input", "a", "--max-bits", "4"), 2, "pass --filter-by-model RUN")
    wrong = preprocess("filter", "try", "--input", "a", "--filter-by-model", "r", "--max-bits", "-1")
    check_error(wrong, 2, "max_bits of the filter perplexity must be from 0 to 1,000")


@pytest.mark.slow
def test_a_process_of_the_command_applies_the_model(tmp_path: Path, run: Path) -> None:
    """The command leaves pandas out, for which PyTorch searches when it first creates a model."""
    path = write_lines(tmp_path / "a.jsonl", [SENTENCE, NOISE])
    command = [sys.executable, "-m", "preprocess", "filter", "try", f"perplexity:run={run},max_bits=4", "--quiet"]
    done = subprocess.run([*command, "--input", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "bits_too_high 1" in done.stdout
