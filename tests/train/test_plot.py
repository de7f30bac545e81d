"""The command that plots runs: its files, options and errors."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.helpers.runs import invoke, make_command, make_environment, small_disk
from tests.train.plotting.helpers import write_metrics


def test_full_disk_is_named(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    with small_disk(tmp_path / "disk") as disk:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        result = invoke("plot.py", run, "--output", disk / "loss.png")
        assert result.returncode == 1 and f"no space left on the disk ({disk / 'loss.png'})" in result.stderr


def test_plot_is_written_into_the_run_by_default(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo", tail='{"step": 51, "tr')
    result = invoke("plot.py", run)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"wrote {run / 'loss.png'}\n", "")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    for kind in ("png", "svg"):
        outputs = [tmp_path / f"{number}.{kind}" for number in (1, 2)]
        assert [invoke("plot.py", run, "--output", output).returncode for output in outputs] == [0, 0]
        assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_values_that_are_too_large_are_left_out_with_a_warning(tmp_path: Path) -> None:
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
    assert "warning: wild: 12 values beyond 1e+30 are left out of the plot" in result.stderr


def test_matplotlib_settings_of_the_user_are_ignored(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    result = subprocess.run(
        make_command("plot.py", run),
        cwd=tmp_path,
        env=make_environment() | {"MPLBACKEND": "xyz"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_output_suffix_may_be_upper_case(tmp_path: Path) -> None:
    assert invoke("plot.py", write_metrics(tmp_path / "demo"), "--output", tmp_path / "x.PNG").returncode == 0
    assert (tmp_path / "x.PNG").read_bytes().startswith(b"\x89PNG")


def test_misuse_is_reported_on_one_line(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    empty = write_metrics(tmp_path / "empty", rows=[{"step": 1, "grad_norm": 1.0}])
    for arguments, message in (
        ([tmp_path], "has no losses: it has no metrics.jsonl"),
        ([run / "metrics.jsonl"], f"is a file; name the folder of a run, such as {run}"),
        ([empty], "has no losses to plot in metrics.jsonl"),
        ([tmp_path / "nosuch"], f"there is no run {tmp_path / 'nosuch'}"),
        ([run, tmp_path / "x" / ".." / "demo"], "is named 2 times; name each run once"),
        ([run, "--output", tmp_path / "x.pdf"], "ends in '.pdf', expected .png or .svg"),
        ([run, "--output", tmp_path], "is a folder; name a file in it"),
        ([run, "--output", run / "metrics.jsonl" / "x.png"], "is not a folder"),
        ([], "the following arguments are required: RUN"),
    ):
        result = invoke("plot.py", *arguments)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
        assert message in result.stderr


@pytest.mark.parametrize(
    "row", ['{"step": 1, "val_loss": "x"}', '{"step": "1"}', "[]", '{"step": 1, "val_loss": NaN}', '{"step": -1}']
)
def test_damaged_row_is_reported_with_its_line_number(tmp_path: Path, row: str) -> None:
    run = write_metrics(tmp_path / "demo", tail=f'{row}\n{{"step": 60, "train_loss": 1.0}}\n')
    result = invoke("plot.py", run)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "line 53 is not a row of metrics" in result.stderr
    assert "indices" not in result.stderr and "('step')" not in result.stderr


def test_missing_matplotlib_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = invoke("plot.py", write_metrics(tmp_path / "demo"))
    assert result.returncode == 1
    assert "pip install 'folio-lm[plot]'" in result.stderr
