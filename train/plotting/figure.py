"""The figure of the curves of runs: panels for loss, learning rate and throughput over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.plotting.curves import Curves
from train.plotting.labels import fit_names, fit_text, measure_inches, spread
from train.plotting.style import (
    GREY,
    HEIGHT_INCHES,
    LEGEND_HANDLE_INCHES,
    LEGEND_INCHES,
    LEGEND_POINTS,
    LEGEND_ROW_INCHES,
    MIN_HEIGHT_INCHES,
    NAME_INCHES,
    TITLE_INCHES,
    TITLE_POINTS,
    WIDTH_INCHES,
    Style,
    get_colour,
    get_curve_style,
    get_rollback_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LABELS = 14  # labels of last values at the right edge of the loss panel, one per run; more do not fit
LABEL_GAP = 0.065  # between two of them, as a fraction of the panel's height


@dataclass(frozen=True)
class Panel:
    """Axes for metrics of the same unit."""

    title: str
    metrics: tuple[str, ...]
    height: float  # relative to the other panels


PANELS = (
    Panel("loss, nats per token", ("train_loss", "val_loss"), 3.2),
    Panel("learning rate", ("learning_rate",), 1.0),
    Panel("tokens/s", ("tokens_per_s",), 1.0),
)


def draw_figure(runs: Sequence[Curves]) -> Figure:
    """Return a figure with a panel for each of PANELS that has values.

    matplotlib must have the settings of `image.load_matplotlib`, here and when the figure is saved.
    """
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(len(run.points[metric][0]) for run in runs for metric in panel.metrics)]
    names = fit_names([run.name for run in runs], NAME_INCHES, LEGEND_POINTS)
    column_inches = max(measure_inches(name, LEGEND_POINTS) for name in names) + LEGEND_HANDLE_INCHES
    num_columns = min(len(runs), int(LEGEND_INCHES / column_inches))
    legend_inches = LEGEND_ROW_INCHES * math.ceil(len(runs) / num_columns) if len(runs) > 1 else 0.0
    heights = [panel.height for panel in panels]
    share = sum(heights) / sum(panel.height for panel in PANELS)
    size = (WIDTH_INCHES, max(HEIGHT_INCHES * share, MIN_HEIGHT_INCHES) + legend_inches)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    all_axes = grid[:, 0]
    for panel, axes in zip(panels, all_axes, strict=True):
        _draw_panel(axes, panel, runs)
    _format_step_axis(all_axes[-1], [steps for run in runs for steps, _ in run.points.values() if len(steps)])
    _label_last_values(all_axes[0], runs)
    _add_line_legend(all_axes[0], runs)
    if len(runs) > 1:
        _add_run_legend(figure, names, num_columns)
    else:
        title = fit_text(runs[0].name, TITLE_INCHES, TITLE_POINTS)
        figure.suptitle(title, parse_math=False, fontsize=TITLE_POINTS)
    figure.align_ylabels()
    return figure


def _draw_panel(axes: Axes, panel: Panel, runs: Sequence[Curves]) -> None:
    for index, run in enumerate(runs):
        for metric in panel.metrics:
            steps, values = run.points[metric]
            point: Style = {"marker": "."} if len(steps) == 1 else {}  # a line needs two points
            axes.plot(steps, values, **point | get_curve_style(metric, index))
        for step, _ in run.rollbacks:
            axes.axvline(step, zorder=1, **get_rollback_style(index))
    axes.set_ylabel(panel.title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:g}")
    if panel != PANELS[0]:
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=4)


def _format_step_axis(axes: Axes, steps_of_curves: Sequence[np.ndarray]) -> None:
    """Format the axis that all panels share: whole numbers, and a margin at both ends."""
    from matplotlib.ticker import MaxNLocator

    first = min(int(steps.min()) for steps in steps_of_curves)
    last = max(int(steps.max()) for steps in steps_of_curves)
    margin = max((last - first) * 0.02, 0.6)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("optimizer step")


def _label_last_values(axes: Axes, runs: Sequence[Curves]) -> None:
    """Write the last validation loss of each run to the right of the panel, without overlaps."""
    last_values = [(i, run.points["val_loss"][1][-1]) for i, run in enumerate(runs) if len(run.points["val_loss"][1])]
    if len(last_values) > MAX_LABELS:
        return
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for _, value in last_values], LABEL_GAP)
    for (index, value), height in zip(last_values, heights, strict=True):
        axes.annotate(
            f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}",
            (1.0, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=get_colour(index),
        )


def _add_line_legend(axes: Axes, runs: Sequence[Curves]) -> None:
    """Add a legend for the kinds of lines to the loss panel, in grey if there are several runs."""
    from matplotlib.lines import Line2D

    labels = {"train_loss": "training", "val_loss": "validation"}
    entries = [
        (get_curve_style(m, 0), label) for m, label in labels.items() if any(len(run.points[m][0]) for run in runs)
    ]
    if any(run.rollbacks for run in runs):
        entries.append((get_rollback_style(0), _describe_rollbacks(runs)))
    colour: Style = {"color": GREY} if len(runs) > 1 else {}
    handles = [Line2D([], [], **style | colour) for style, _ in entries]
    axes.legend(handles, [label for _, label in entries], loc="upper right", framealpha=0.85, edgecolor="none")


def _describe_rollbacks(runs: Sequence[Curves]) -> str:
    rollbacks = [pair for run in runs for pair in run.rollbacks]
    if len(rollbacks) > 1:
        return "rolled back to a checkpoint"
    step, from_step = rollbacks[0]
    return f"rolled back from step {from_step:,} to {step:,}"


def _add_run_legend(figure: Figure, names: Sequence[str], num_columns: int) -> None:
    """Add a legend for the colours of the runs below all panels."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **get_curve_style("val_loss", index)) for index in range(len(names))]
    labels = [f" {name}" if name.startswith("_") else name for name in names]  # matplotlib hides "_…"
    legend = figure.legend(
        lines, labels, loc="outside lower center", ncols=num_columns, fontsize=LEGEND_POINTS, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
