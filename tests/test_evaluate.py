"""Evaluation: the formulas, and that it leaves no trace in training."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from config import Config
from data import ValidationData
from evaluate import Evaluation, evaluate
from model import GPT
from preprocess.shards.format import Build
from train_helpers import TINY, VOCAB_SIZE, make_build


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(make_build(tmp_path / "tiny"))


def setup(build: Build, **settings: object) -> tuple[GPT, ValidationData]:
    config = Config(**({"data": "x", "out_dir": "y"} | TINY | settings))  # type: ignore[arg-type]
    torch.manual_seed(0)
    return GPT(config, VOCAB_SIZE), ValidationData(build, config, device=torch.device("cpu"))


def test_against_a_computation_by_hand(build: Build) -> None:
    model, data = setup(build)
    result = evaluate(model, data, autocast=contextlib.nullcontext())
    model.eval()
    tokens = build.shards("val")[0].tokens.astype(np.int64)
    nats = []
    for start in range(0, 17 * 16, 16):
        window = torch.from_numpy(tokens[start : start + 17])
        logits = model.logits(model.features(window[None, :-1]))[0, :, :VOCAB_SIZE]
        nats += F.cross_entropy(logits, window[1:], reduction="none").tolist()
    means = np.array(nats).reshape(17, 16).mean(axis=1)
    assert result.loss == pytest.approx(np.mean(nats), rel=1e-6)
    assert result.stderr == pytest.approx(means.std(ddof=1) / math.sqrt(17), rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-6)
    split = build.manifest["splits"]["val"]
    assert (split["tokens"], split["text_bytes"]) == (6 * 46, 6 * 44)
    assert result.bits_per_byte == pytest.approx(np.mean(nats) / math.log(2) * 276 / 264, rel=1e-6)


def test_it_touches_no_random_number_and_no_mode(build: Build) -> None:
    model, data = setup(build, dropout=0.5)
    before = torch.get_rng_state()
    first = evaluate(model, data, autocast=contextlib.nullcontext())
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert evaluate(model, data, autocast=contextlib.nullcontext()) == first


def test_batch_size_changes_no_more_than_rounding(build: Build) -> None:
    results = [evaluate(*setup(build, batch_size=size), autocast=contextlib.nullcontext()).loss for size in (1, 4, 100)]
    assert results == pytest.approx([results[0]] * 3, rel=1e-6)


def test_one_window_has_no_standard_error(build: Build) -> None:
    assert evaluate(*setup(build, eval_tokens=16), autocast=contextlib.nullcontext()).stderr is None


def test_a_loss_beyond_all_measure_has_infinite_perplexity() -> None:
    assert Evaluation(loss=1e6, stderr=None, bits_per_byte=None).perplexity == math.inf
