"""The picture of the loss."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from train_helpers import invoke


def write_metrics(run: Path, *, tail: str = "") -> Path:
    run.mkdir()
    rows = [{"step": s, "train_loss": 4.0 / (1 + s / 10)} for s in range(1, 50)] + [
        {"step": s, "val_loss": 4.2 / (1 + s / 11)} for s in (0, 25, 50)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return run


def test_a_run_is_drawn_beside_its_metrics(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo", tail='{"step": 51, "tr')
    result = invoke("plot.py", run)
    assert (result.returncode, result.stdout) == (0, f"wrote {run / 'loss.png'}\n")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_several_runs_in_one_picture(tmp_path: Path) -> None:
    runs = [write_metrics(tmp_path / name) for name in ("one", "two")]
    output = tmp_path / "new" / "both.svg"
    assert invoke("plot.py", *runs, "--output", output).returncode == 0
    assert "<svg" in output.read_text()


def test_misuse(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "demo")
    for arguments, complaint in (
        ([tmp_path], "has no losses in metrics.jsonl"),
        ([run, "--output", tmp_path / "x.pdf"], "ends in '.pdf', wanted .png or .svg"),
        ([], "the following arguments are required: RUN"),
    ):
        result = invoke("plot.py", *arguments)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert complaint in result.stderr


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = invoke("plot.py", write_metrics(tmp_path / "demo"))
    assert result.returncode == 1
    assert "pip install 'folio-lm[plot]'" in result.stderr
