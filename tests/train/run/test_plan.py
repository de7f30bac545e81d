"""The plan for a text and a time: values, limits, and that it grows with both."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from preprocess.errors import FolioError, MisuseError
from tests.helpers.runs import make_config
from train.model import make_model
from train.run.plan import (
    BYTES_PER_PARAMETER,
    MAX_EPOCHS,
    MIN_CONTEXT,
    PLANNED,
    Limits,
    Plan,
    Speed,
    Text,
    choose_shape,
    correct_steps,
    count_parameters,
    flops_per_token,
    interpolate,
    list_widths,
    make_plan,
    relative_loss,
)

LARGE = Text(train_tokens=10**10, val_tokens=10**7, consecutive_tokens=10**6, vocab_size=8_000, name="large")
NOVEL = Text(train_tokens=10**6, val_tokens=10**5, consecutive_tokens=10**5, vocab_size=65, name="novel")


def speeds_of(flops_per_s: float) -> list[Speed]:
    """Return measurements of a machine that computes at one rate."""
    return [
        Speed(settings={}, flops_per_token=f, tokens_per_s=flops_per_s / f, evaluation_tokens_per_s=3 * flops_per_s / f)
        for f in (1e6, 1e8, 1e10)
    ]


def plan_for(
    text: Text = LARGE, *, seconds: float = 600, flops_per_s: float = 5e10, given: dict[str, Any] | None = None,
    memory_bytes: float = 1e12, **limits: Any,
) -> Plan:  # fmt: skip
    all_limits = Limits(seconds=seconds, memory_bytes=memory_bytes, **limits)
    return make_plan(text, all_limits, speeds_of(flops_per_s), given or {})


TEXTS = [
    dataclasses.replace(LARGE, train_tokens=n, val_tokens=n // 20, consecutive_tokens=n // 20)
    for n in (7_000, 10**5, 10**7, 10**10)
]
CASES = list(itertools.product(TEXTS, (5, 120, 3_600, 10**6), (1e9, 1e11, 5e14)))


@pytest.mark.parametrize(("text", "seconds", "flops_per_s"), CASES)
def test_plan_is_a_valid_config_that_uses_the_time_and_fits_the_text(
    text: Text, seconds: float, flops_per_s: float
) -> None:
    plan = plan_for(text, seconds=seconds, flops_per_s=flops_per_s)
    assert plan == plan_for(text, seconds=seconds, flops_per_s=flops_per_s)
    assert set(plan.settings) == set(PLANNED)
    config = make_config(**plan.settings, warmup_steps=0, min_lr=0)
    assert text.train_tokens is not None and text.consecutive_tokens is not None
    assert MIN_CONTEXT <= config.block_size < text.consecutive_tokens
    tokens = config.max_steps * config.windows_per_step * config.block_size
    assert tokens == plan.tokens
    if config.max_steps > 20:  # the least number of steps can take longer
        assert tokens / plan.tokens_per_s <= seconds
        assert tokens <= MAX_EPOCHS * text.train_tokens
        assert plan.is_limited_by_text or tokens / plan.tokens_per_s > 0.7 * seconds


@pytest.mark.parametrize("text", [*TEXTS, NOVEL])
def test_more_time_never_means_a_smaller_model_fewer_tokens_or_a_shorter_context(text: Text) -> None:
    plans = [plan_for(text, seconds=seconds) for seconds in (10, 30, 100, 300, 1_000, 10_000, 10**5)]
    for before, after in itertools.pairwise(plans):
        assert before.flops_per_token * before.tokens <= after.flops_per_token * after.tokens * 1.1
        assert before.settings["n_embd"] <= after.settings["n_embd"]
        assert before.settings["dropout"] <= after.settings["dropout"]


def test_a_faster_machine_is_worth_as_much_as_more_time() -> None:
    assert plan_for(flops_per_s=1e12).num_parameters > plan_for(flops_per_s=1e10).num_parameters
    assert plan_for(flops_per_s=1e12, seconds=60).num_parameters == plan_for(flops_per_s=1e11).num_parameters


def test_a_repeated_text_gets_dropout_and_ends_the_run_before_the_time() -> None:
    assert plan_for(NOVEL, seconds=20, flops_per_s=1e10).settings["dropout"] == 0
    plan = plan_for(NOVEL, seconds=3_600, flops_per_s=5e14)
    assert plan.is_limited_by_text and plan.settings["dropout"] == 0.2
    assert plan.epochs == pytest.approx(MAX_EPOCHS, rel=0.01)
    assert plan_for(LARGE, seconds=3_600, flops_per_s=5e14).num_parameters > plan.num_parameters


def test_a_text_of_unknown_size_is_taken_to_be_new() -> None:
    stream = dataclasses.replace(LARGE, train_tokens=None, val_tokens=None, consecutive_tokens=None)
    assert plan_for(stream).epochs is None and plan_for(stream).settings["dropout"] == 0
    assert plan_for(stream).settings["n_embd"] == plan_for(LARGE).settings["n_embd"]
    assert plan_for(stream).settings["eval_tokens"] is not None


@pytest.mark.parametrize("max_params", [10**6, 3 * 10**6, 10**7])
def test_max_params_and_memory_limit_the_size(max_params: int) -> None:
    text = dataclasses.replace(LARGE, vocab_size=3_000)
    unlimited = plan_for(text, seconds=36_000, flops_per_s=1e13)
    assert unlimited.num_parameters > 10**7
    assert plan_for(text, seconds=36_000, flops_per_s=1e13, max_params=max_params).num_parameters <= max_params
    memory = plan_for(text, seconds=36_000, flops_per_s=1e13, memory_bytes=max_params * BYTES_PER_PARAMETER)
    assert memory.num_parameters <= max_params


def test_too_small_max_params_is_reported_with_the_smallest_model() -> None:
    with pytest.raises(MisuseError, match=r"max_params is 1,000, but the smallest model for the 8,000 ids of large"):
        plan_for(max_params=1_000)


def test_too_short_a_text_is_rejected_with_its_size() -> None:
    with pytest.raises(FolioError, match=r"novel has 16 consecutive tokens in a split, but a run with minutes needs"):
        plan_for(dataclasses.replace(NOVEL, consecutive_tokens=16))
    assert plan_for(dataclasses.replace(NOVEL, consecutive_tokens=17)).settings["block_size"] == 16


def test_a_text_without_validation_can_be_planned() -> None:
    plan = plan_for(dataclasses.replace(NOVEL, val_tokens=0))
    assert plan.settings["eval_tokens"] is None and plan.settings["max_steps"] > 100


@pytest.mark.parametrize(
    "given",
    [
        {"n_layer": 2}, {"n_embd": 96}, {"n_head": 3}, {"n_head": 5, "n_layer": 1}, {"block_size": 100},
        {"batch_size": 7}, {"batch_size": 4, "gradient_accumulation_steps": 3}, {"gradient_accumulation_steps": 5},
        {"dropout": 0.3}, {"learning_rate": 0.01, "muon_learning_rate": 0.01},
        {"eval_interval": 7, "eval_tokens": None},
    ],
)  # fmt: skip
def test_given_settings_are_kept_and_the_rest_is_planned_around_them(given: dict[str, Any]) -> None:
    plan = plan_for(given=given)
    assert given.items() <= plan.settings.items()
    config = make_config(**plan.settings, warmup_steps=0, min_lr=0)
    assert config.n_embd % config.n_head == 0 and (config.n_embd // config.n_head) % 2 == 0
    seconds = config.max_steps * config.windows_per_step * config.block_size / plan.tokens_per_s
    assert 0.85 * 600 < seconds <= 600


def test_windows_of_a_step_can_be_divided_among_processes() -> None:
    for size in (2, 3, 8):
        assert plan_for(world_size=size).settings["batch_size"] % size == 0


def test_without_muon_the_learning_rates_are_not_planned() -> None:
    names = {"learning_rate", "muon_learning_rate", "base_width", "muon_momentum"}
    assert set(plan_for(has_muon=False).settings) == set(PLANNED) - names


@pytest.mark.parametrize("width", list_widths({}))
def test_parameters_and_flops_are_those_of_the_model(width: int) -> None:
    shape = choose_shape(width)
    config = make_config(**shape, arch="modern", block_size=64)
    with torch.device("meta"):
        model = make_model(config, 300)
    assert model.num_parameters == count_parameters(shape, 300)
    assert model.flops_per_token() == flops_per_token(shape, 64, 300)


def test_speed_is_interpolated_between_measurements_and_hopeful_outside() -> None:
    speeds = [
        Speed(settings={}, flops_per_token=f, tokens_per_s=rate, evaluation_tokens_per_s=1)
        for f, rate in ((1e6, 1_000.0), (1e8, 100.0))
    ]

    def rate(flops: float) -> float:
        return interpolate(speeds, flops, of=lambda speed: speed.tokens_per_s)

    assert rate(1e6) == pytest.approx(1_000) and rate(1e8) == pytest.approx(100)
    assert rate(1e7) == pytest.approx(math.sqrt(100 * 1_000))
    assert rate(1e5) == pytest.approx(10_000)
    assert 10 < rate(1e9) < 100


def test_a_much_larger_model_is_not_planned_before_a_nearer_one_was_measured() -> None:
    small = [Speed(settings={}, flops_per_token=1e6, tokens_per_s=1e6, evaluation_tokens_per_s=3e6)]
    for vocab_size in (65, 8_000):
        text = dataclasses.replace(LARGE, vocab_size=vocab_size)
        plan = make_plan(text, Limits(seconds=10**6, memory_bytes=1e12), small, {"block_size": 64})
        assert 1e6 < plan.flops_per_token <= 8e6
    text = dataclasses.replace(LARGE, vocab_size=100_000)  # even the smallest needs more
    assert make_plan(text, Limits(seconds=10**6, memory_bytes=1e12), small, {}).settings["n_embd"] == 32


def test_relative_loss_falls_with_size_and_tokens_but_less_with_repeated_ones() -> None:
    assert relative_loss(1e6, 1e7, None) > relative_loss(2e6, 1e7, None) > relative_loss(2e6, 2e7, None)
    assert relative_loss(1e6, 1e7, 10**8) == relative_loss(1e6, 1e7, None)
    assert relative_loss(1e6, 1e8, 10**6) > relative_loss(1e6, 1e8, None)
    assert relative_loss(1e6, 1e8, 10**6) == pytest.approx(relative_loss(1e6, 1e9, 10**6), rel=1e-2)


def test_corrected_steps_fill_the_time_and_end_with_an_evaluation_that_is_near() -> None:
    assert correct_steps(100, seconds_left=50, step_s=0.1, interval=1_000) == 600
    assert correct_steps(100, seconds_left=50, step_s=0.1, interval=590) == 590
    assert correct_steps(100, seconds_left=50, step_s=0.1, interval=500) == 600
    assert correct_steps(100, seconds_left=-5, step_s=0.1, interval=10) == 101
    assert correct_steps(100, seconds_left=0.25, step_s=0.1, interval=100) == 102
