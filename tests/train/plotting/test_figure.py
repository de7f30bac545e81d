"""The figure of the curves of runs: panels, texts and their positions."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import invoke
from tests.train.plotting.helpers import write_metrics
from train.core.names import make_run_names
from train.plotting.curves import read_curves
from train.plotting.figure import LABEL_GAP, draw_figure
from train.plotting.image import load_matplotlib
from train.plotting.style import COLOURS


def draw(*runs: Path) -> Any:
    load_matplotlib()
    names = make_run_names(runs)
    figure = draw_figure([read_curves(run, name, warn=print) for run, name in zip(runs, names, strict=True)])
    figure.draw_without_rendering()
    return figure


def get_texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def check_texts_are_inside(figure: Any) -> None:
    """Check that no text except the ticks extends beyond the figure."""
    from matplotlib.text import Text

    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text.get_window_extent().width:
            box = text.get_window_extent()
            is_tick = text.get_text().replace(",", "").lstrip("-−").replace(".", "").isdigit()
            assert is_tick or (box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height), text.get_text()


def test_figure_has_three_panels_over_the_same_steps(tmp_path: Path) -> None:
    figure = draw(write_metrics(tmp_path / "demo"))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss, nats per token", "learning rate", "tokens/s"]
    assert {axes.get_xlim() for axes in figure.axes} == {(-1.0, 51.0)}
    heights = [axes.get_position().height for axes in figure.axes]
    assert heights[0] > 2 * max(heights[1:])
    assert figure.axes[1].lines[0].get_ydata().tolist() == [1e-3] * 49
    assert figure.axes[2].lines[0].get_ydata()[0] == 901
    assert {"training", "validation", "demo", "0.757"} <= {*get_texts(figure)}
    check_texts_are_inside(figure)


def test_validation_loss_is_more_visible_than_training_loss(tmp_path: Path) -> None:
    train, val = draw(write_metrics(tmp_path / "demo")).axes[0].lines
    assert train.get_linewidth() < val.get_linewidth() and train.get_alpha() < 0.5 and val.get_alpha() is None
    assert (train.get_marker(), val.get_marker()) == ("None", "o")


def test_several_runs_have_a_colour_each_and_a_legend_below(tmp_path: Path) -> None:
    runs = [
        write_metrics(tmp_path / name, scale=scale)
        for name, scale in (("a/run", 1.0), ("b/run", 1.001), ("_c$x$", 0.9))
    ]
    output = tmp_path / "new" / "all.svg"
    assert invoke("plot.py", *runs, "--output", output).returncode == 0
    assert "<svg" in output.read_text()
    figure = draw(*runs)
    assert [line.get_color() for line in figure.axes[2].lines] == list(COLOURS[:3])
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["a/run", "b/run", "_c$x$"]
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)
    assert all(above - below > LABEL_GAP * 0.99 for below, above in itertools.pairwise(heights))
    check_texts_are_inside(figure)


@pytest.mark.parametrize("letter", ["x", "W"])
def test_long_names_are_shortened_in_the_middle(tmp_path: Path, letter: str) -> None:
    runs = [write_metrics(tmp_path / f"first_{letter * 200}{end}") for end in ("_one", "_two", f"{letter}_one")]
    alone = draw(runs[0])
    title = alone.get_suptitle()
    assert title.startswith("first_") and title.endswith("_one") and "…" in title
    check_texts_are_inside(alone)
    together = draw(*runs)
    names = [text.get_text() for text in together.legends[0].get_texts()]
    assert len({*names}) == 3
    check_texts_are_inside(together)


def test_characters_that_the_font_lacks_are_escaped(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(write_metrics(tmp_path / "ж你\n")).get_suptitle() == "ж\\u4f60\\n"


@pytest.mark.parametrize("step", [0, 1, 10**15])
def test_single_point_is_visible_and_labelled(tmp_path: Path, step: int) -> None:
    figure = draw(write_metrics(tmp_path / "demo", rows=[{"step": step, "val_loss": 10.7}]))
    (axes,) = figure.axes
    ticks = [text.get_text() for text in axes.get_xticklabels() if text.get_text()]
    assert f"{step:,}" in ticks and len({*ticks}) == len(ticks) and "-0" not in ticks
    label = next(text for text in axes.texts if text.get_text() == "10.700")
    assert label.get_window_extent().x0 > axes.get_window_extent().x1
    trained = draw(write_metrics(tmp_path / "trained", rows=[{"step": 1, "train_loss": 1.0}]))
    assert trained.axes[0].lines[0].get_marker() == "."


def test_ticks_of_steps_are_whole_numbers(tmp_path: Path) -> None:
    figure = draw(write_metrics(tmp_path / "demo", rows=[{"step": s, "val_loss": 1.0} for s in (0, 1, 2)]))
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_rollback_is_marked_by_a_line(tmp_path: Path) -> None:
    rows = [{"step": s, "train_loss": 1.0} for s in (0, 600, 610)]
    rows.insert(2, {"step": 600, "went_back_from_step": 740, "skipped_samples": 12})
    figure = draw(write_metrics(tmp_path / "demo", rows=rows))
    assert "rolled back from step 740 to 600" in get_texts(figure)
    assert [600, 600] in [list(line.get_xdata()) for line in figure.axes[0].lines]
    twice = draw(write_metrics(tmp_path / "twice", rows=[*rows, {"step": 610, "went_back_from_step": 700}]))
    assert "rolled back to a checkpoint" in get_texts(twice)


def test_large_values_have_short_labels(tmp_path: Path) -> None:
    figure = draw(
        write_metrics(tmp_path / "wild", rows=[{"step": s, "train_loss": 1e12 * s, "val_loss": 1e29} for s in (1, 2)])
    )
    assert max(map(len, get_texts(figure))) <= len("loss, nats per token") and "1e+29" in get_texts(figure)
