"""The logger of a run: speed as numbers and as text."""

from __future__ import annotations

import pytest

from train.run import logger
from train.run.console import format_speed
from train.run.logger import StepCost, StepTimer


def test_step_cost_speed_is_formatted() -> None:
    cost = StepCost(tokens_per_step=1, flops_per_token=1e9, peak_flops=1e12, memory_bytes=lambda: 3_210_000_000)
    assert format_speed(cost.speed(500.0)) == ["500 tokens/s", "MFU 50.0%", "3.2 GB"]
    unknown = StepCost(tokens_per_step=1, flops_per_token=1e9, peak_flops=None, memory_bytes=lambda: None)
    assert format_speed(unknown.speed(500.0)) == ["500 tokens/s"]


def test_first_split_leaves_out_the_first_step_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(logger.time, "monotonic", lambda: now)
    timer = StepTimer(step=20)
    now += 5  # the first step takes longer
    timer.count(21)
    assert timer.num_timed_steps(21) == 0
    for step in (22, 23, 24):
        now += 0.25
        timer.count(step)
        with timer.pause():
            now += 1
    assert timer.num_timed_steps(24) == 3
    assert timer.split(24) == 0.25
    now += 0.5
    assert timer.num_timed_steps(25) == 1 and timer.split(25) == 0.5
