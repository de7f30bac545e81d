"""Fitting of texts into a plot: their width in the font, and the distances between labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.core.names import shorten_middle


def fit_names(names: Sequence[str], max_inches: float, points: int) -> list[str]:
    """Shorten each name as `fit_text` does. If two names are then equal, number all of them."""
    fitted = [fit_text(name, max_inches, points) for name in names]
    if len({*fitted}) == len(fitted):
        return fitted
    return [f"{number}: {name}" for number, name in enumerate(fitted, start=1)]


def fit_text(text: str, max_inches: float, points: int) -> str:
    """Return `text`, shortened to a width of `max_inches` at a font size of `points`.

    Characters that the font does not have are escaped.
    """
    text = _escape_missing_glyphs(text)
    length = len(text)
    while length > 1 and measure_inches(shorten_middle(text, length), points) > max_inches:
        length -= 1 + length // 20
    return shorten_middle(text, length)


def measure_inches(text: str, points: int) -> float:
    """Return the width of a text at a font size of `points`."""
    font = _load_font()
    font.set_size(points, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / 72  # the unit is 1/64 of a point


def _escape_missing_glyphs(text: str) -> str:
    font = _load_font()
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in text)


def _load_font() -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return `heights`, from 0 to 1, moved so that neighbours are at least `gap` apart.

    Heights that are too close form a group, whose members get the distance `gap` and keep their
    mean. Groups that would overlap are joined. The order does not change, and the result is between
    0 and 1 if there is enough space.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[int]] = []  # of indices into `heights`, lowest first

    def get_bottom(group: list[int]) -> float:
        extent = gap * (len(group) - 1)
        centre = sum(heights[i] for i in group) / len(group)
        return max(0.0, min(1 - extent, centre - extent / 2))

    for i in order:
        groups.append([i])
        while len(groups) > 1 and get_bottom(groups[-2]) + gap * len(groups[-2]) > get_bottom(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = {i: get_bottom(group) + gap * rank for group in groups for rank, i in enumerate(group)}
    return [moved[i] for i in range(len(heights))]
