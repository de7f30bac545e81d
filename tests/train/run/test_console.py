"""Numbers as the console shows them."""

from __future__ import annotations

import pytest

from preprocess.progress import format_duration
from train.run.console import format_rate


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m 00s"), (80, "1m 20s"), (7500, "2h 05m"), (400_000, "111h 06m")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(1e-3, "1.0e-3"), (6e-12, "6.0e-12"), (2.0, "2.0e0")])
def test_format_rate(rate: float, text: str) -> None:
    assert format_rate(rate) == text
