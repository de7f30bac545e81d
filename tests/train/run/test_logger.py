"""The logger of a run: speed as numbers and as text."""

from __future__ import annotations

from train.run.console import format_speed
from train.run.logger import StepCost


def test_step_cost_speed_is_formatted() -> None:
    cost = StepCost(tokens_per_step=1, flops_per_token=1e9, peak_flops=1e12, memory_bytes=lambda: 3_210_000_000)
    assert format_speed(cost.speed(500.0)) == ["500 tokens/s", "MFU 50.0%", "3.2 GB"]
    unknown = StepCost(tokens_per_step=1, flops_per_token=1e9, peak_flops=None, memory_bytes=lambda: None)
    assert format_speed(unknown.speed(500.0)) == ["500 tokens/s"]
