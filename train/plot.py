"""Plot loss, learning rate and throughput of runs: `python train/plot.py RUN… [--output FILE]`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # started by path: this folder would hide the package `train`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from train.__main__ import run_script

    run_script("plot")

from preprocess.errors import one_line
from train.core.arguments import Parser, make_path_parser
from train.core.cli import warn
from train.core.names import make_run_names
from train.plotting.curves import read_curves
from train.plotting.image import check_output, write_image


def main(arguments: list[str]) -> int:
    """Plot the runs that the command line names. Return the exit status."""
    parser = Parser(
        prog="python train/plot.py", description="Plot loss, learning rate and throughput of one or more runs."
    )
    parser.add_argument("runs", nargs="+", type=make_path_parser("RUN"), metavar="RUN", help="the out_dir of a run")
    parser.add_argument(
        "--output",
        type=make_path_parser("--output"),
        metavar="FILE",
        help="a .png or .svg file [loss.png in the first RUN]",
    )
    options = parser.parse_args(arguments)
    output = options.output or options.runs[0] / "loss.png"
    check_output(output)
    names = make_run_names(options.runs)
    curves = [read_curves(run, name, warn=warn) for run, name in zip(options.runs, names, strict=True)]
    write_image(curves, output)
    if not options.quiet:
        print(one_line(f"wrote {output}"))
    return 0
