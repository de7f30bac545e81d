"""Loss, learning rate and throughput of one run or more, drawn: `python train/plot.py RUN… [--output FILE.png]`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preprocess.errors import FolioError, MisuseError, one_line
from preprocess.shards.files import write_durable
from train.core.cli import Parser, add_path_to_errors, run_command, warn
from train.core.names import names_apart, shorten
from train.run.metrics import METRICS_FILE, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
# What each panel shows: its name, the keys of its rows, and its share of the height.
PANELS = (
    ("loss, nats a token", ("train_loss", "val_loss"), 3.2),
    ("learning rate", ("learning_rate",), 1.0),
    ("tokens/s", ("tokens_per_s",), 1.0),
)
KEYS = tuple(key for _, keys, _ in PANELS for key in keys)
WENT_BACK = "went_back_from_step"
# Okabe and Ito's colours, which colour-blind readers tell apart; with more runs than colours, other markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#555555"
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8.0, 6.4, 144
LEGEND_ROW_INCHES = 0.22
TITLE_POINTS, LEGEND_POINTS = 12, 10
TITLE_INCHES, NAME_INCHES, LEGEND_INCHES, LEGEND_HANDLE_INCHES = 7.4, 3.4, 7.6, 0.75
LABEL_GAP, MOST_LABELS = (
    0.065,
    14,
)  # of the loss panel's height, from one value at its right edge to the next; as many as fit
LARGEST = 1e30  # of a value that is drawn: the arithmetic of axes overflows long before a float does


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What is drawn of a run."""

    name: str
    points: dict[str, tuple[list[int], list[float]]]  # of each of KEYS: steps and values
    returns: list[tuple[int, int]]  # the step that the run went back to, and the one that it came from
    num_left_out: int  # values too large to draw


def read_curves(run: Path, name: str) -> Curves:
    """The curves of the run in the folder `run`, to be called `name`.

    Raises MisuseError where there is no run or nothing to draw, FolioError for a row that is none.
    """
    path = run / METRICS_FILE
    if not run.exists():
        raise MisuseError(f"there is no run {run}; name the out_dir of a run, such as runs/demo")
    if run.is_file():
        raise MisuseError(f"{run} is a file; name the folder of a run, such as {run.parent}")
    if not path.is_file():
        raise MisuseError(
            f"{run} has no losses: it holds no {METRICS_FILE}; name the out_dir of a run, such as runs/demo"
        )
    rows = read_rows(path)
    told = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in KEYS}
    drawn = {
        key: [(step, float(value)) for step, value in pairs if abs(value) <= LARGEST] for key, pairs in told.items()
    }
    if not drawn["train_loss"] and not drawn["val_loss"]:
        raise MisuseError(f"{run} has no losses to draw in {METRICS_FILE}; train it further, or name another run")
    return Curves(
        name=name,
        points={key: ([step for step, _ in pairs], [value for _, value in pairs]) for key, pairs in drawn.items()},
        returns=[(row["step"], int(row[WENT_BACK])) for row in rows if _is_step(row.get(WENT_BACK))],
        num_left_out=sum(len(told[key]) - len(drawn[key]) for key in KEYS),
    )


def _is_step(value: Any) -> bool:
    return value is not None and 0 <= value <= LARGEST


def draw(runs: Sequence[Curves]) -> Figure:
    """A figure of one panel each for loss, learning rate and throughput, as far as there are any, over the same steps.

    To be called, and saved, with matplotlib as `_load_matplotlib` leaves it.
    """
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(run.points[key][0] for run in runs for key in panel[1])]
    names = _fitted_names([run.name for run in runs])
    widest = max(_inches(name, LEGEND_POINTS) for name in names)
    num_columns = min(len(runs), int(LEGEND_INCHES / (widest + LEGEND_HANDLE_INCHES)))
    legend_inches = LEGEND_ROW_INCHES * -(-len(runs) // num_columns) if len(runs) > 1 else 0.0
    share = sum(height for _, _, height in panels) / sum(height for _, _, height in PANELS)
    figure = Figure(figsize=(WIDTH_INCHES, max(HEIGHT_INCHES * share, 4.5) + legend_inches), layout="constrained")
    ratios = [height for _, _, height in panels]
    column = figure.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for (title, keys, _), axes in zip(panels, column, strict=True):
        for number, run in enumerate(runs):
            for key in keys:
                steps, values = run.points[key]
                axes.plot(steps, values, **({"marker": "."} if len(steps) == 1 else {}) | _style(key, number))
            for step, _ in run.returns:
                axes.axvline(step, color=_colour(number), linewidth=1, linestyle=":", zorder=1)
        _dress(axes, title)
    _fit_steps(column[-1], [step for run in runs for steps, _ in run.points.values() for step in steps])
    _tell_values(column[0], runs)
    _add_legends(figure, column[0], runs, names, num_columns)
    if len(runs) == 1:
        figure.suptitle(_fit(_shown(runs[0].name), TITLE_INCHES, TITLE_POINTS), parse_math=False, fontsize=TITLE_POINTS)
    figure.align_ylabels()
    return figure


def _style(key: str, number: int) -> dict[str, Any]:
    """How the curve `key` of run `number` is drawn: thin and pale what is noisy, so that the one that matters is read off it."""
    style: dict[str, Any] = {"color": _colour(number)}
    if key == "val_loss":
        return style | {
            "linewidth": 2,
            "marker": MARKERS[number // len(COLOURS) % len(MARKERS)],
            "markersize": 4.5,
            "zorder": 3,
        }
    if key == "train_loss":
        return style | {"linewidth": 0.9, "alpha": 0.4, "zorder": 2}
    return style | {"linewidth": 1.2, "alpha": 0.85, "zorder": 2}


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dress(axes: Axes, title: str) -> None:
    axes.set_ylabel(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:g}")
    if title != PANELS[0][0]:
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="y", nbins=4)


def _fit_steps(axes: Axes, steps: Sequence[int]) -> None:
    """The axis of steps, shared by all panels: whole numbers, and room around a single one."""
    from matplotlib.ticker import MaxNLocator

    first, last = min(steps), max(steps)
    room = max((last - first) * 0.02, 0.6)
    axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("optimizer step")


def _tell_values(axes: Axes, runs: Sequence[Curves]) -> None:
    """Each run's last validation loss, right of the panel at its height, where no line can cross it."""
    last = [(number, run.points["val_loss"][1][-1]) for number, run in enumerate(runs) if run.points["val_loss"][1]]
    if len(last) > MOST_LABELS:
        return
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for _, value in last], LABEL_GAP)
    for (number, value), height in zip(last, heights, strict=True):
        text = f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
        axes.annotate(
            text,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=_colour(number),
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """`heights`, from 0 to 1, moved as far as it takes for each to be `gap` from the next: those too near stand around their mean."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[int]] = []

    def bottom(group: list[int]) -> float:
        extent = gap * (len(group) - 1)
        return max(0.0, min(1 - extent, sum(heights[i] for i in group) / len(group) - extent / 2))

    for i in order:
        groups.append([i])
        while len(groups) > 1 and bottom(groups[-2]) + gap * len(groups[-2]) > bottom(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = {i: bottom(group) + gap * place for group in groups for place, i in enumerate(group)}
    return [placed[i] for i in range(len(heights))]


def _add_legends(figure: Figure, axes: Axes, runs: Sequence[Curves], names: Sequence[str], num_columns: int) -> None:
    """What the strokes mean, in the loss panel; what the colours mean, where there are several runs, below all panels."""
    from matplotlib.lines import Line2D

    several = len(runs) > 1
    meant = {"train_loss": "training", "val_loss": "validation"}
    strokes = [(_style(key, 0), name) for key, name in meant.items() if any(run.points[key][0] for run in runs)]
    if any(run.returns for run in runs):
        strokes.append(({"color": _colour(0), "linewidth": 1, "linestyle": ":"}, _tell_returns(runs)))
    handles = [Line2D([], [], **style | ({"color": GREY} if several else {})) for style, _ in strokes]
    axes.legend(handles, [name for _, name in strokes], loc="upper right", framealpha=0.85, edgecolor="none")
    if several:
        lines = [Line2D([], [], **_style("val_loss", number)) for number in range(len(runs))]
        labels = [f" {name}" if name.startswith("_") else name for name in names]  # an underscore would hide it
        legend = figure.legend(
            lines, labels, loc="outside lower center", ncols=num_columns, fontsize=LEGEND_POINTS, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _tell_returns(runs: Sequence[Curves]) -> str:
    returns = [pair for run in runs for pair in run.returns]
    if len(returns) > 1:
        return "went back to a checkpoint"
    step, from_step = returns[0]
    return f"went back from step {from_step:,} to {step:,}"


def _fitted_names(names: Sequence[str]) -> list[str]:
    """Each name as the legend has room for; where two would then be the same, all are numbered."""
    fitted = [_fit(_shown(name), NAME_INCHES, LEGEND_POINTS) for name in names]
    return (
        fitted
        if len({*fitted}) == len(fitted)
        else [f"{number}: {name}" for number, name in enumerate(fitted, start=1)]
    )


def _fit(name: str, inches: float, points: int) -> str:
    """`name`, shortened to `inches` of letters of the size `points`."""
    most = len(name)
    while most > 1 and _inches(shorten(name, most), points) > inches:
        most -= 1 + most // 20
    return shorten(name, most)


def _inches(text: str, points: int) -> float:
    font = _font()
    font.set_size(points, 72)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64 / 72  # from 64ths of a point


def _shown(name: str) -> str:
    """`name`, with every character that the font does not have as its code."""
    font = _font()
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in name)


def _font() -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties()))


def _load_matplotlib() -> Any:
    """matplotlib with its own settings, whatever the user's are. Raises FolioError where it is not installed."""
    # Read, and refused with a traceback where it is unknown, by the very import. A figure that is saved needs no backend.
    os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as e:
        raise FolioError("plotting needs matplotlib, which is not installed; pip install 'folio-lm[plot]'") from e
    matplotlib.rcdefaults()
    # In one piece, a noisy line of a million points is more than the rasterizer takes. The salt makes the same SVG of the same run.
    matplotlib.rcParams.update({"agg.path.chunksize": 10_000, "svg.hashsalt": "folio"})
    return matplotlib


def plot(runs: Sequence[Path], output: Path, *, warn: Callable[[str], None]) -> None:
    """Write the picture of `runs` to `output`, whose name says the format. Raises FolioError, MisuseError."""
    kind = output.suffix.lower()
    if output.is_dir():
        raise MisuseError(f"output {output} is a folder; name a file in it, such as {output / 'loss.png'}")
    if kind not in FORMATS:
        raise MisuseError(
            f"output {output} ends in {output.suffix!r}, wanted {' or '.join(FORMATS)}; choose another --output"
        )
    curves = [read_curves(run, name) for run, name in zip(runs, names_apart(runs), strict=True)]
    for run in curves:
        if run.num_left_out:
            warn(f"{run.name}: {run.num_left_out:,} values beyond {LARGEST:g} are left out of the picture")
    _load_matplotlib()
    image = io.BytesIO()
    metadata = {"Date": None} if kind == ".svg" else None
    draw(curves).savefig(image, format=kind.removeprefix("."), dpi=DOTS_PER_INCH, metadata=metadata)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise MisuseError(
            f"output {output} cannot be in {output.parent}, which is no folder; choose another --output"
        ) from e
    with add_path_to_errors(output):
        write_durable(output, image.getvalue())


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="python train/plot.py", description="Draw loss, learning rate and throughput of one run or more."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the out_dir of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a .png or .svg [loss.png in the first RUN]")
    options = parser.parse_args(arguments)
    output = options.output or options.runs[0] / "loss.png"
    plot(options.runs, output, warn=warn)
    print(one_line(f"wrote {output}"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
