"""The loss of one run or more, drawn: `python train/plot.py RUN… [--output FILE.png]`."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from command import Parser, run_command
from preprocess.errors import FolioError, MisuseError, one_line
from preprocess.shards.files import write_durable
from tracking import METRICS_FILE, read_rows

FORMATS = (".png", ".svg")
LOSSES = ("train_loss", "val_loss")
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 8, 4.5, 144


def draw_losses(runs: list[Path], output: Path) -> None:
    """Write the training and validation loss of `runs` against the step to `output`. Raises FolioError, MisuseError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise FolioError("plotting needs matplotlib, which is not installed; pip install 'folio-lm[plot]'") from e
    if output.suffix not in FORMATS:
        raise MisuseError(f"output {output} ends in {output.suffix!r}, wanted {' or '.join(FORMATS)}; choose another --output")
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    axes = figure.add_subplot()
    for number, run in enumerate(runs):
        _draw_run(axes, run, colour=COLOURS[number % len(COLOURS)], prefix=f"{_label(run)} " if len(runs) > 1 else "")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats a token")
    axes.set_title("Loss of " + ", ".join(map(_label, runs)))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format=output.suffix.removeprefix("."), dpi=DOTS_PER_INCH)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_durable(output, image.getvalue())


def _label(run: Path) -> str:
    """The run's name as matplotlib shows it: a dollar begins no formula, an underscore hides no line."""
    name = run.resolve().name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _draw_run(axes: Any, run: Path, *, colour: str, prefix: str) -> None:
    rows = read_rows(run / METRICS_FILE)
    train, val = (([r["step"] for r in rows if r.get(key) is not None], [r[key] for r in rows if r.get(key) is not None]) for key in LOSSES)
    if not train[0] and not val[0]:
        raise MisuseError(f"{run} has no losses in {METRICS_FILE}; name the out_dir of a run, such as runs/demo")
    # Thin and pale for the noisy one, so that the one that matters is read off it.
    axes.plot(*train, color=colour, linewidth=1, alpha=0.45, label=f"{prefix}training")
    axes.plot(*val, color=colour, linewidth=2, marker="o", markersize=5, label=f"{prefix}validation")
    if val[1]:
        axes.annotate(f"{val[1][-1]:.3f}", (val[0][-1], val[1][-1]), xytext=(0, 8), textcoords="offset points", ha="right", color=colour)


def main(arguments: list[str]) -> int:
    parser = Parser(prog="python train/plot.py", description="Draw the loss of one run or more.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the out_dir of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a .png or .svg [loss.png in the first RUN]")
    options = parser.parse_args(arguments)
    output = options.output or options.runs[0] / "loss.png"
    draw_losses(options.runs, output)
    print(one_line(f"wrote {output}"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
