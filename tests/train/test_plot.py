"""The picture of a run's loss, learning rate and throughput."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import command, environment, invoke, small_disk
from train import plot


def write_metrics(run: Path, *, tail: str = "", rows: list[dict[str, Any]] | None = None, scale: float = 1.0) -> Path:
    run.mkdir(parents=True)
    if rows is None:
        train = [
            {"step": s, "train_loss": scale * 4 / (1 + s / 10), "learning_rate": 1e-3, "tokens_per_s": 900.0 + s}
            for s in range(1, 50)
        ]
        rows = train + [{"step": s, "val_loss": scale * 4.2 / (1 + s / 11)} for s in (0, 25, 50)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return run


def figure_of(*runs: Path) -> Any:
    plot._load_matplotlib()
    figure = plot.draw([plot.read_curves(run, name) for run, name in zip(runs, plot.names_apart(runs), strict=True)])
    figure.draw_without_rendering()
    return figure


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def check_inside(figure: Any) -> None:
    """That no text runs over the figure's edge."""
    from matplotlib.text import Text

    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text.get_window_extent().width:
            box = text.get_window_extent()
            is_tick = text.get_text().replace(",", "").lstrip("-−").replace(".", "").isdigit()
            assert is_tick or (box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height), text.get_text()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    with small_disk(tmp_path / "disk") as disk:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        result = invoke("plot.py", run, "--output", disk / "loss.png")
        assert result.returncode == 1 and f"no space left on the disk ({disk / 'loss.png'})" in result.stderr


def test_a_run_is_drawn_beside_its_metrics(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo", tail='{"step": 51, "tr')
    result = invoke("plot.py", run)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"wrote {run / 'loss.png'}\n", "")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_three_panels_over_the_same_steps(tmp_path: Path) -> None:
    figure = figure_of(write_metrics(tmp_path / "demo"))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss, nats a token", "learning rate", "tokens/s"]
    assert {axes.get_xlim() for axes in figure.axes} == {(-1.0, 51.0)}
    heights = [axes.get_position().height for axes in figure.axes]
    assert heights[0] > 2 * max(heights[1:])
    assert figure.axes[1].lines[0].get_ydata().tolist() == [1e-3] * 49
    assert figure.axes[2].lines[0].get_ydata()[0] == 901
    assert {"training", "validation", "demo", "0.757"} <= {*texts(figure)}
    check_inside(figure)


def test_the_validation_loss_is_what_meets_the_eye(tmp_path: Path) -> None:
    train, val = figure_of(write_metrics(tmp_path / "demo")).axes[0].lines
    assert train.get_linewidth() < val.get_linewidth() and train.get_alpha() < 0.5 and val.get_alpha() is None
    assert (train.get_marker(), val.get_marker()) == ("None", "o")


def test_several_runs_have_a_colour_each_and_names_below(tmp_path: Path) -> None:
    runs = [
        write_metrics(tmp_path / name, scale=scale)
        for name, scale in (("a/run", 1.0), ("b/run", 1.001), ("_c$x$", 0.9))
    ]
    output = tmp_path / "new" / "all.svg"
    assert invoke("plot.py", *runs, "--output", output).returncode == 0
    assert "<svg" in output.read_text()
    figure = figure_of(*runs)
    assert [line.get_color() for line in figure.axes[2].lines] == list(plot.COLOURS[:3])
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["a/run", "b/run", "_c$x$"]
    heights = sorted(text.xy[1] for text in figure.axes[0].texts)
    assert all(above - below > plot.LABEL_GAP * 0.99 for below, above in itertools.pairwise(heights))
    check_inside(figure)


def test_the_same_picture_again(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    for kind in ("png", "svg"):
        outputs = [tmp_path / f"{number}.{kind}" for number in (1, 2)]
        assert [invoke("plot.py", run, "--output", output).returncode for output in outputs] == [0, 0]
        assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_values_at_the_edge_stand_apart_and_in_order() -> None:
    assert plot.spread([0.1, 0.9], 0.1) == [0.1, 0.9]
    assert plot.spread([0.5, 0.5, 0.9], 0.1) == pytest.approx([0.45, 0.55, 0.9])
    assert plot.spread([0.52, 0.5, 0.6], 0.1) == pytest.approx([0.54, 0.44, 0.64])
    assert plot.spread([0.0, 0.0, 1.0, 1.0], 0.1) == pytest.approx([0.0, 0.1, 0.9, 1.0])
    assert plot.spread([], 0.1) == []


@pytest.mark.parametrize("letter", ["x", "W"])
def test_a_long_name_is_shortened_in_its_middle(tmp_path: Path, letter: str) -> None:
    runs = [write_metrics(tmp_path / f"first_{letter * 200}{end}") for end in ("_one", "_two", f"{letter}_one")]
    alone = figure_of(runs[0])
    title = alone.get_suptitle()
    assert title.startswith("first_") and title.endswith("_one") and "…" in title
    check_inside(alone)
    together = figure_of(*runs)
    names = [text.get_text() for text in together.legends[0].get_texts()]
    assert len({*names}) == 3
    check_inside(together)


def test_as_much_of_a_path_as_tells_runs_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/run", "b/run", "other", "x/a/run")]
    assert plot.names_apart(paths) == [f"{tmp_path.name}/a/run", "b/run", "other", "x/a/run"]


def test_characters_that_the_font_lacks_are_their_codes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure_of(write_metrics(tmp_path / "ж你\n")).get_suptitle() == "ж\\u4f60\\n"


@pytest.mark.parametrize("step", [0, 1, 10**15])
def test_one_point_is_seen_and_its_value_read(tmp_path: Path, step: int) -> None:
    figure = figure_of(write_metrics(tmp_path / "demo", rows=[{"step": step, "val_loss": 10.7}]))
    (axes,) = figure.axes
    ticks = [text.get_text() for text in axes.get_xticklabels() if text.get_text()]
    assert f"{step:,}" in ticks and len({*ticks}) == len(ticks) and "-0" not in ticks
    label = next(text for text in axes.texts if text.get_text() == "10.700")
    assert label.get_window_extent().x0 > axes.get_window_extent().x1
    one = figure_of(write_metrics(tmp_path / "trained", rows=[{"step": 1, "train_loss": 1.0}]))
    assert one.axes[0].lines[0].get_marker() == "."


def test_steps_are_whole(tmp_path: Path) -> None:
    figure = figure_of(write_metrics(tmp_path / "demo", rows=[{"step": s, "val_loss": 1.0} for s in (0, 1, 2)]))
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_a_return_to_a_checkpoint_is_marked(tmp_path: Path) -> None:
    rows = [{"step": s, "train_loss": 1.0} for s in (0, 600, 610)]
    rows.insert(2, {"step": 600, "went_back_from_step": 740, "skipped_samples": 12})
    figure = figure_of(write_metrics(tmp_path / "demo", rows=rows))
    assert "went back from step 740 to 600" in texts(figure)
    assert [600, 600] in [list(line.get_xdata()) for line in figure.axes[0].lines]
    twice = figure_of(write_metrics(tmp_path / "twice", rows=[*rows, {"step": 610, "went_back_from_step": 700}]))
    assert "went back to a checkpoint" in texts(twice)


def test_values_beyond_all_measure(tmp_path: Path) -> None:
    run = tmp_path / "wild"
    values = ["1e308", "-1e308", "1" + "0" * 400, "1e30", "-1e30", "null", "3.0"]
    lines = [
        f'{{"step": {s}, "train_loss": {v}, "val_loss": {v}, "learning_rate": {v}, "tokens_per_s": {v}}}'
        for s, v in enumerate(values)
    ]
    write_metrics(run, rows=[], tail="\n".join([*lines, '{"step": 7, "went_back_from_step": 1e308}', ""]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = invoke("plot.py", run)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)
    assert "warning: wild: 12 values beyond 1e+30 are left out of the picture" in result.stderr


def test_large_values_are_told_in_few_characters(tmp_path: Path) -> None:
    figure = figure_of(
        write_metrics(tmp_path / "wild", rows=[{"step": s, "train_loss": 1e12 * s, "val_loss": 1e29} for s in (1, 2)])
    )
    assert max(map(len, texts(figure))) <= len("loss, nats a token") and "1e+29" in texts(figure)


def test_the_users_backend_and_settings_do_not_matter(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    done = subprocess.run(
        command("plot.py", run),
        cwd=tmp_path,
        env=environment() | {"MPLBACKEND": "xyz"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_case_of_an_ending_does_not_matter(tmp_path: Path) -> None:
    assert invoke("plot.py", write_metrics(tmp_path / "demo"), "--output", tmp_path / "x.PNG").returncode == 0
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")


def test_misuse(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    empty = write_metrics(tmp_path / "empty", rows=[{"step": 1, "grad_norm": 1.0}])
    for arguments, complaint in (
        ([tmp_path], "has no losses: it holds no metrics.jsonl"),
        ([run / "metrics.jsonl"], f"is a file; name the folder of a run, such as {run}"),
        ([empty], "has no losses to draw in metrics.jsonl"),
        ([tmp_path / "nosuch"], f"there is no run {tmp_path / 'nosuch'}"),
        ([run, tmp_path / "x" / ".." / "demo"], "is named 2 times; name each run once"),
        ([run, "--output", tmp_path / "x.pdf"], "ends in '.pdf', wanted .png or .svg"),
        ([run, "--output", tmp_path], "is a folder; name a file in it"),
        ([run, "--output", run / "metrics.jsonl" / "x.png"], "which is no folder"),
        ([], "the following arguments are required: RUN"),
    ):
        result = invoke("plot.py", *arguments)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
        assert complaint in result.stderr


@pytest.mark.parametrize(
    "row", ['{"step": 1, "val_loss": "x"}', '{"step": "1"}', "[]", '{"step": 1, "val_loss": NaN}', '{"step": -1}']
)
def test_what_is_no_row_is_told(tmp_path: Path, row: str) -> None:
    run = write_metrics(tmp_path / "demo", tail=f'{row}\n{{"step": 60, "train_loss": 1.0}}\n')
    result = invoke("plot.py", run)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1) and "line 53 is no row of metrics" in result.stderr
    assert "indices" not in result.stderr and "('step')" not in result.stderr


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = invoke("plot.py", write_metrics(tmp_path / "demo"))
    assert result.returncode == 1
    assert "pip install 'folio-lm[plot]'" in result.stderr
