"""Labels that do not overlap."""

from __future__ import annotations

import pytest

from train.plotting.labels import spread


def test_spread_separates_heights_and_keeps_their_order() -> None:
    assert spread([0.1, 0.9], 0.1) == [0.1, 0.9]
    assert spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert spread([0.52, 0.5, 0.6], 0.1) == pytest.approx([0.54, 0.44, 0.64])
    assert spread([0.0, 0.0, 1.0, 1.0], 0.1) == pytest.approx([0.0, 0.1, 0.9, 1.0])
    assert spread([], 0.1) == []
