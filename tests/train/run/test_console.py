"""Numbers as the console shows them."""

from __future__ import annotations

import pytest

from train.run.console import format_rate


@pytest.mark.parametrize(("rate", "text"), [(1e-3, "1.0e-3"), (6e-12, "6.0e-12"), (2.0, "2.0e0")])
def test_format_rate(rate: float, text: str) -> None:
    assert format_rate(rate) == text
