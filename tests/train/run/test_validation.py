"""Evaluation: the formulas, and that it leaves no trace in training."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers.runs import TINY, VOCAB_SIZE, make_build
from train.config import Config
from train.data.batches import ValidationData
from train.data.builds import Builds, open_builds
from train.model.gpt2 import GPT2
from train.run.validation import EarlyStopping, Evaluation, Strata, evaluate, is_better


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return open_builds(str(make_build(tmp_path / "tiny")))


def setup(builds: Builds, **settings: object) -> tuple[GPT2, ValidationData]:
    config = Config(**({"data": "x", "out_dir": "y"} | TINY | settings))  # type: ignore[arg-type]
    torch.manual_seed(0)
    return GPT2(config, VOCAB_SIZE), ValidationData(builds, config, device=torch.device("cpu"))


def look(model: GPT2, data: ValidationData, batch_size: int = 4) -> Evaluation:
    return evaluate(model, data, batch_size=batch_size, autocast=contextlib.nullcontext())


def one_build(num_windows: int) -> Strata:
    return Strata(source=np.zeros(num_windows, np.int64), shares=(1.0,))


def evaluation(losses: torch.Tensor) -> Evaluation:
    strata = one_build(len(losses))
    return Evaluation(
        loss=losses.mean().item(), stderr=None, bits_per_byte=None, by_build={}, losses=losses, strata=strata
    )


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
    assert evaluation(torch.full((1,), 1e6)).perplexity == math.inf


def seen(*losses: torch.Tensor) -> EarlyStopping:
    watch = EarlyStopping()
    for step, each in enumerate(losses, start=1):
        watch.see(
            step,
            evaluation(each),
        )
    return watch


def test_an_improvement_counts_only_beyond_noise() -> None:
    """Windows differ among each other far more than two evaluations of the same: only the difference, window by window, tells."""
    generator = torch.Generator().manual_seed(0)
    hard = 3 + torch.randn(400, generator=generator)  # of a mean loss known to ± 0.05
    noise = 0.02 * torch.randn(400, generator=generator)
    assert is_better(hard - 0.01 + noise, hard, one_build(400)), (
        "a hundredth, on every window: ten times the standard error of the difference"
    )
    assert not is_better(hard - noise.mean() + noise, hard, one_build(400))
    assert not is_better(hard, hard, one_build(400)) and not is_better(hard + 0.01, hard, one_build(400))
    assert is_better(torch.tensor([2.0]), torch.tensor([3.0]), one_build(1)), "of one window there is no noise to know"


def test_patience_counts_evaluations_since_a_real_improvement() -> None:
    generator = torch.Generator().manual_seed(0)
    base = 3 + torch.randn(400, generator=generator)
    jitter = [0.02 * torch.randn(400, generator=generator) for _ in range(3)]
    jitter = [
        each - each.mean() - 1e-5 * (n + 1) for n, each in enumerate(jitter)
    ]  # each the lowest so far, by next to nothing
    watch = seen(base, *(base + each for each in jitter))
    assert (watch.num_since, watch.best_step) == (3, 4)
    assert watch.is_out_of(3) and not watch.is_out_of(4) and not watch.is_out_of(None)
    assert seen(base, base + jitter[0], base - 0.1).num_since == 0


def test_an_evaluation_that_is_not_finite_is_no_best() -> None:
    watch = seen(torch.tensor([2.0, 3.0]), torch.tensor([math.nan, 1.0]), torch.tensor([-math.inf, 1.0]))
    assert (watch.best_step, watch.best_loss) == (1, 2.5)


def test_shared_out_it_is_the_same(builds: Builds) -> None:
    _, data = setup(builds)
    parts = [list(data.batches(3, rank=rank, num_ranks=4)) for rank in range(4)]
    of_each = [{n for numbers, _ in part for n in numbers.tolist()} for part in parts]
    assert sum(len(numbers) for numbers in of_each) == data.num_windows and set.union(*of_each) == {
        *range(data.num_windows)
    }
    whole = next(data.batches(data.num_windows))[1][0]
    for part in parts:
        for numbers, (ids, _, _) in part:
            assert torch.equal(ids, whole[numbers])


def test_builds_weigh_by_their_share_not_their_size() -> None:
    """A tenth of the windows, half of the samples: half of the loss."""
    source = np.repeat([0, 1], [90, 10])
    values = torch.cat([torch.randn(90, generator=torch.Generator().manual_seed(0)), 5 + torch.randn(10)])
    mean, stderr = Strata(source=source, shares=(0.5, 0.5)).mean_and_stderr(values)
    one, two = values[:90].double(), values[90:].double()
    assert mean == pytest.approx((one.mean().item() + two.mean().item()) / 2)
    assert stderr == pytest.approx(math.sqrt(one.var().item() / 90 / 4 + two.var().item() / 10 / 4))
    assert Strata(source=source, shares=(0.5, 0.5)).means(values) == pytest.approx(
        [one.mean().item(), two.mean().item()]
    )


def test_of_one_build_the_mean_is_the_plain_one() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    mean, stderr = one_build(50).mean_and_stderr(values)
    assert (mean, stderr) == pytest.approx((values.mean().item(), values.std().item() / math.sqrt(50)))
