"""Colours, markers, lines and sizes of a plot."""

from __future__ import annotations

from typing import Any

Style = dict[str, Any]  # keyword arguments of matplotlib
# Okabe and Ito's palette, which colour-blind readers can distinguish. With more runs than colours,
# the markers change too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#555555"
WIDTH_INCHES, HEIGHT_INCHES, MIN_HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 6.4, 4.5, 144
TITLE_POINTS, LEGEND_POINTS = 12, 10
# The maximum widths of the title, of a run's name in the legend, and of a row of the legend; the
# width of the line beside a name, with its margins.
TITLE_INCHES, NAME_INCHES, LEGEND_INCHES, LEGEND_HANDLE_INCHES = 7.4, 3.4, 7.6, 0.75
LEGEND_ROW_INCHES = 0.22


def get_colour(run_index: int) -> str:
    """Return the colour of run number `run_index`."""
    return COLOURS[run_index % len(COLOURS)]


def get_curve_style(metric: str, run_index: int) -> Style:
    """Return matplotlib's arguments for the curve of a metric.

    The training loss, which is noisy, is thin and pale, so that the validation loss stands out.
    """
    style: Style = {"color": get_colour(run_index)}
    if metric == "val_loss":
        marker = MARKERS[run_index // len(COLOURS) % len(MARKERS)]
        return style | {"linewidth": 2, "marker": marker, "markersize": 4.5, "zorder": 3}
    if metric == "train_loss":
        return style | {"linewidth": 0.9, "alpha": 0.4, "zorder": 2}
    return style | {"linewidth": 1.2, "alpha": 0.85, "zorder": 2}


def get_rollback_style(run_index: int) -> Style:
    """Return matplotlib's arguments for the vertical line at a rollback."""
    return {"color": get_colour(run_index), "linewidth": 1, "linestyle": ":"}
