"""Evaluation: the formulas, and that it leaves no trace in training."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from builds import Builds, open_builds
from config import Config
from data import ValidationData
from evaluate import Evaluation, evaluate
from gpt2 import GPT2
from train_helpers import TINY, VOCAB_SIZE, make_build


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return open_builds(str(make_build(tmp_path / "tiny")))


def setup(builds: Builds, **settings: object) -> tuple[GPT2, ValidationData]:
    config = Config(**({"data": "x", "out_dir": "y"} | TINY | settings))  # type: ignore[arg-type]
    torch.manual_seed(0)
    return GPT2(config, VOCAB_SIZE), ValidationData(builds, config, device=torch.device("cpu"))


def look(model: GPT2, data: ValidationData, batch_size: int = 4) -> Evaluation:
    return evaluate(model, data, batch_size=batch_size, autocast=contextlib.nullcontext())


def test_against_a_computation_by_hand(builds: Builds) -> None:
    model, data = setup(builds)
    result = look(model, data)
    model.eval()
    tokens = builds.vocabulary.shards("val")[0].tokens.astype(np.int64)
    nats = []
    for start in range(0, 17 * 16, 16):
        window = torch.from_numpy(tokens[start : start + 17])
        logits = model.logits(model.features(window[None, :-1]))[0, :, :VOCAB_SIZE]
        nats += F.cross_entropy(logits, window[1:], reduction="none").tolist()
    means = np.array(nats).reshape(17, 16).mean(axis=1)
    assert result.loss == pytest.approx(np.mean(nats), rel=1e-6)
    assert result.stderr == pytest.approx(means.std(ddof=1) / math.sqrt(17), rel=1e-4)
    assert result.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-6)
    split = builds.manifest["splits"]["val"]
    assert (split["tokens"], split["text_bytes"]) == (6 * 46, 6 * 44)
    assert result.bits_per_byte == pytest.approx(np.mean(nats) / math.log(2) * 276 / 264, rel=1e-6)


def test_it_touches_no_random_number_and_no_mode(builds: Builds) -> None:
    model, data = setup(builds, dropout=0.5)
    before = torch.get_rng_state()
    first = look(model, data)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert look(model, data) == first


def test_batch_size_changes_no_more_than_rounding(builds: Builds) -> None:
    results = [look(*setup(builds), batch_size=size).loss for size in (1, 4, 100)]
    assert results == pytest.approx([results[0]] * 3, rel=1e-6)


def test_one_window_has_no_standard_error(builds: Builds) -> None:
    assert look(*setup(builds, eval_tokens=16)).stderr is None


def test_a_loss_beyond_all_measure_has_infinite_perplexity() -> None:
    assert Evaluation(loss=1e6, stderr=None, bits_per_byte=None, losses=torch.ones(1)).perplexity == math.inf
