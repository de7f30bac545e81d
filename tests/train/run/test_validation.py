"""Evaluation: loss, standard error, bits per byte, and early stopping that ignores noise."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers.runs import VOCAB_SIZE, make_build, make_config
from train.core.distributed import World
from train.data.batches import ValidationData
from train.data.builds import Builds, open_builds
from train.model.gpt2 import GPT2
from train.run.validation import EarlyStopping, Evaluation, Strata, _equal_passes, evaluate, is_better


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    return open_builds(str(make_build(tmp_path / "tiny")))


def make_model_and_data(builds: Builds, **settings: object) -> tuple[GPT2, ValidationData]:
    config = make_config(**settings)
    torch.manual_seed(0)
    return GPT2(config, VOCAB_SIZE), ValidationData(builds, config, device=torch.device("cpu"))


def evaluate_on_cpu(model: GPT2, data: ValidationData, batch_size: int = 4) -> Evaluation:
    return evaluate(model, data, batch_size=batch_size, autocast=contextlib.nullcontext())


def make_strata(num_windows: int) -> Strata:
    """Return the Strata of one build."""
    return Strata(build_index=np.zeros(num_windows, np.int64), shares=(1.0,))


def make_evaluation(losses: torch.Tensor) -> Evaluation:
    strata = make_strata(len(losses))
    return Evaluation(
        loss=losses.mean().item(), stderr=None, bits_per_byte=None, by_build={}, losses=losses, strata=strata
    )


# evaluate


def test_evaluate_agrees_with_a_plain_computation(builds: Builds) -> None:
    model, data = make_model_and_data(builds)
    result = evaluate_on_cpu(model, data)
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
    split = builds.manifest.splits["val"]
    assert (split.tokens, split.text_bytes) == (6 * 46, 6 * 44)
    assert result.bits_per_byte == pytest.approx(np.mean(nats) / math.log(2) * 276 / 264, rel=1e-6)


def test_evaluate_draws_no_random_number_and_restores_the_mode(builds: Builds) -> None:
    model, data = make_model_and_data(builds, dropout=0.5)
    before = torch.get_rng_state()
    first = evaluate_on_cpu(model, data)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert evaluate_on_cpu(model, data) == first


def test_evaluate_has_the_same_loss_for_any_batch_size(builds: Builds) -> None:
    losses = [evaluate_on_cpu(*make_model_and_data(builds), batch_size=size).loss for size in (1, 4, 100)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_one_window_has_no_standard_error(builds: Builds) -> None:
    assert evaluate_on_cpu(*make_model_and_data(builds, eval_tokens=16)).stderr is None


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert make_evaluation(torch.full((1,), 1e6)).perplexity == math.inf


# Strata


def test_mean_weighs_builds_by_share_and_not_by_size() -> None:
    """The second build has a tenth of the windows, and a share of one half."""
    build_index = np.repeat([0, 1], [90, 10])
    values = torch.cat([torch.randn(90, generator=torch.Generator().manual_seed(0)), 5 + torch.randn(10)])
    strata = Strata(build_index=build_index, shares=(0.5, 0.5))
    mean, stderr = strata.mean_and_stderr(values)
    first, second = values[:90].double(), values[90:].double()
    assert mean == pytest.approx((first.mean().item() + second.mean().item()) / 2)
    assert stderr == pytest.approx(math.sqrt(first.var().item() / 90 / 4 + second.var().item() / 10 / 4))
    assert strata.means(values) == pytest.approx([first.mean().item(), second.mean().item()])


def test_mean_of_one_build_is_the_plain_mean() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    mean, stderr = make_strata(50).mean_and_stderr(values)
    assert (mean, stderr) == pytest.approx((values.mean().item(), values.std().item() / math.sqrt(50)))


# Early stopping


def make_early_stopping(*losses: torch.Tensor) -> EarlyStopping:
    """Return an EarlyStopping after evaluations with these losses at the steps 1, 2, …"""
    early_stopping = EarlyStopping()
    for step, losses_of_step in enumerate(losses, start=1):
        early_stopping.update(step, make_evaluation(losses_of_step))
    return early_stopping


def test_is_better_compares_window_by_window() -> None:
    """Windows differ from each other far more than two evaluations of the same window do."""
    generator = torch.Generator().manual_seed(0)
    losses = 3 + torch.randn(400, generator=generator)  # their mean is known to ± 0.05
    noise = 0.02 * torch.randn(400, generator=generator)
    assert is_better(losses - 0.01 + noise, losses, make_strata(400)), "ten standard errors of the difference"
    assert not is_better(losses - noise.mean() + noise, losses, make_strata(400))
    assert not is_better(losses, losses, make_strata(400))
    assert not is_better(losses + 0.01, losses, make_strata(400))
    assert is_better(torch.tensor([2.0]), torch.tensor([3.0]), make_strata(1)), "the noise of one window is unknown"


def test_patience_counts_evaluations_without_an_improvement_beyond_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    base = 3 + torch.randn(400, generator=generator)
    noises = [0.02 * torch.randn(400, generator=generator) for _ in range(3)]
    # Each has the lowest mean so far, but by less than noise.
    noises = [noise - noise.mean() - 1e-5 * (number + 1) for number, noise in enumerate(noises)]
    early_stopping = make_early_stopping(base, *(base + noise for noise in noises))
    assert (early_stopping.num_since, early_stopping.best_step) == (3, 4)
    assert early_stopping.is_exhausted(3)
    assert not early_stopping.is_exhausted(4) and not early_stopping.is_exhausted(None)
    assert make_early_stopping(base, base + noises[0], base - 0.1).num_since == 0


def test_evaluation_that_is_not_finite_is_not_the_best() -> None:
    losses = [torch.tensor(values) for values in ([2.0, 3.0], [math.nan, 1.0], [-math.inf, 1.0])]
    early_stopping = make_early_stopping(*losses)
    assert (early_stopping.best_step, early_stopping.best_loss) == (1, 2.5)


# loss mask


def test_evaluate_with_a_loss_mask_is_the_mean_over_counted_tokens(tmp_path: Path) -> None:
    model, data = make_model_and_data(open_builds(str(make_build(tmp_path / "chats", learnt=slice(30, 46)))))
    result = evaluate_on_cpu(model, data)
    _, targets, _ = data.batch(np.arange(data.num_windows))
    ids, _, _ = data.batch(np.arange(data.num_windows))
    with torch.no_grad():
        logits = model.eval().logits(model.features(ids))
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).double()
    is_counted = targets != -100
    sums, counts = each.sum(dim=1), is_counted.sum(dim=1).double()
    ratio = sums.sum() / counts.sum()
    assert result.loss == pytest.approx(ratio.item(), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(ratio), rel=1e-6)
    assert result.bits_per_byte is None
    stderr = ((sums - ratio * counts).var() / len(sums)).sqrt() / counts.mean()
    assert result.stderr == pytest.approx(stderr.item(), rel=1e-4)


def test_evaluate_of_a_mixture_with_a_loss_mask_weights_the_builds(tmp_path: Path) -> None:
    chats, plain = make_build(tmp_path / "chats", learnt=slice(30, 46)), make_build(tmp_path / "plain")
    model, data = make_model_and_data(open_builds(f"{chats}:1,{plain}:3"))
    result = evaluate_on_cpu(model, data)
    alone = [evaluate_on_cpu(*make_model_and_data(open_builds(str(folder)))).loss for folder in (chats, plain)]
    assert list(result.by_build.values()) == pytest.approx(alone, rel=1e-6)
    assert result.loss == pytest.approx(0.25 * alone[0] + 0.75 * alone[1], rel=1e-6)
    assert result.bits_per_byte is None


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5, 20])
def test_all_processes_have_equally_many_passes_and_share_the_windows(builds: Builds, num_processes: int) -> None:
    """A process without a window of its own takes part in the passes of a sharded model."""
    _, data = make_model_and_data(builds, eval_tokens=16 * 9)
    worlds = [World(rank=rank, size=num_processes) for rank in range(num_processes)]
    passes = [[(list(indices), len(batch[0])) for indices, batch in _equal_passes(data, 2, world)] for world in worlds]
    assert {len(each) for each in passes} == {math.ceil(math.ceil(9 / num_processes) / 2)}
    # A last batch that would be smaller repeats windows of the one before.
    found = [{index for indices, _ in each for index in indices} for each in passes]
    assert sorted(index for each in found for index in each) == list(range(9))
    assert all(len(indices) in (0, size) for each in passes for indices, size in each)
